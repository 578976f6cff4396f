// A CPU stand-in for the part of CUDA that our kernels use, so that their very source can be tested without a GPU.
//
// Each thread of a block is a fiber; blocks run one after another. A warp runs to the next barrier of its block before
// another warp begins, its lanes to the next operation of the warp, and the order of both changes all the time
// (GROUNDTHINK_EMULATOR_SEED): a result that depends on it is a race. Copies to shared memory land when they are waited
// for, not before, and shared memory starts out as NaN. Not emulated: time,
// bank conflicts, memory order beyond barriers, and anything that this file does not name.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulator {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  _Float16 value;
};

// Nearest, ties to even; NaN stays NaN.
inline Bf16 bf16_of(float x) {
  const uint32_t bits = bits_of(x);
  if (x != x) return {uint16_t(0x7fff)};
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
inline float bf16_to_float(uint16_t bits) { return float_of(uint32_t(bits) << 16); }

constexpr int kWarp = 32;

enum class Waits { no, for_warp, for_block, finished };

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Waits waits = Waits::no;
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
  std::vector<Copy> open;
};

// What the lanes of a warp show each other.
struct Exchange {
  uint32_t words[kWarp][16];
  const void* rows[kWarp];
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Exchange> warps;
  std::vector<unsigned char> shared;
  ucontext_t scheduler;
  int current = 0;
  dim3 block, grid, block_size;
  std::function<void()> body;
  std::mt19937 order{std::getenv("GROUNDTHINK_EMULATOR_SEED") ? unsigned(std::atoi(std::getenv("GROUNDTHINK_EMULATOR_SEED"))) : 0u};
};
inline Machine& machine() {
  static Machine one;
  return one;
}

inline Fiber& self() { return machine().fibers[machine().current]; }
inline Exchange& exchange() { return machine().warps[machine().current / kWarp]; }
inline int lane() { return machine().current % kWarp; }

inline void wait(Waits what) {
  Machine& m = machine();
  self().waits = what;
  swapcontext(&self().context, &m.scheduler);
}

inline void enter() {
  Machine& m = machine();
  m.body();
  self().waits = Waits::finished;
  swapcontext(&self().context, &m.scheduler);
}

inline void release(int begin, int end, Waits what) {
  Machine& m = machine();
  bool any = false;
  for (int i = begin; i < end; i++) {
    if (m.fibers[i].waits == Waits::finished) continue;
    if (m.fibers[i].waits != what) return;
    any = true;
  }
  for (int i = begin; any && i < end; i++)
    if (m.fibers[i].waits == what) m.fibers[i].waits = Waits::no;
}

// Runs a warp as far as it goes without the others: what lacks a barrier of the block finds them nowhere near.
inline void run_warp(int begin, int end) {
  Machine& m = machine();
  std::vector<int> turn(end - begin);
  for (int i = 0; i < end - begin; i++) turn[i] = begin + i;
  for (bool ran = true; ran;) {
    std::shuffle(turn.begin(), turn.end(), m.order);
    ran = false;
    for (int i : turn) {
      if (m.fibers[i].waits != Waits::no) continue;
      ran = true;
      m.current = i;
      swapcontext(&m.scheduler, &m.fibers[i].context);
    }
    release(begin, end, Waits::for_warp);
  }
}

inline void run_block(size_t shared_bytes) {
  Machine& m = machine();
  const int threads = int(m.block_size.x);
  constexpr size_t kStack = 256 * 1024;
  // 16 bytes more, for an aligned start
  m.shared.assign(shared_bytes + 16, 0xff);
  m.fibers = std::vector<Fiber>(threads);
  m.warps.resize((threads + kWarp - 1) / kWarp);
  for (Fiber& fiber : m.fibers) {
    fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  const int warps = (threads + kWarp - 1) / kWarp;
  const auto is_ready = [](const Fiber& fiber) { return fiber.waits == Waits::no; };
  std::vector<int> turn(warps);
  for (int i = 0; i < warps; i++) turn[i] = i;
  while (true) {
    std::shuffle(turn.begin(), turn.end(), m.order);
    for (int warp : turn) run_warp(warp * kWarp, std::min(threads, (warp + 1) * kWarp));
    if (std::all_of(m.fibers.begin(), m.fibers.end(), [](const Fiber& f) { return f.waits == Waits::finished; })) return;
    release(0, threads, Waits::for_block);
    if (std::none_of(m.fibers.begin(), m.fibers.end(), is_ready)) {
      std::fprintf(stderr, "cuda_emulator: deadlock: the threads of a block wait at different barriers\n");
      std::abort();
    }
  }
}

inline void launch(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> body) {
  Machine& m = machine();
  m.grid = grid;
  m.block_size = block;
  m.body = std::move(body);
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        m.block = dim3(x, y, z);
        run_block(shared_bytes);
      }
}

struct ThreadIndex {
  struct Component {
    operator unsigned() const { return unsigned(machine().current); }
  } x;
};
struct BlockIndex {
  template <unsigned dim3::*kMember>
  struct Component {
    operator unsigned() const { return machine().block.*kMember; }
  };
  Component<&dim3::x> x;
  Component<&dim3::y> y;
  Component<&dim3::z> z;
};
struct GridSize {
  template <unsigned dim3::*kMember>
  struct Component {
    operator unsigned() const { return machine().grid.*kMember; }
  };
  Component<&dim3::x> x;
  Component<&dim3::y> y;
};
struct BlockSize {
  struct Component {
    operator unsigned() const { return machine().block_size.x; }
  } x;
};

// Shows `mine` to the other lanes, lets `read` look at what all have shown, and keeps it until all have looked.
template <typename Show, typename Read>
auto among_lanes(Show show, Read read) {
  show(exchange());
  wait(Waits::for_warp);
  auto result = read(exchange());
  wait(Waits::for_warp);
  return result;
}

struct Registers4 {
  uint32_t r[4];
};

inline uint16_t half_of(uint32_t bits, int which) { return uint16_t(which ? bits >> 16 : bits); }

inline Registers4 load_matrices(const void* row, bool transposed) {
  return among_lanes([&](Exchange& x) { x.rows[lane()] = row; },
                     [&](Exchange& x) {
                       Registers4 out{};
                       const int g = lane() / 4, q = lane() % 4;
                       for (int matrix = 0; matrix < 4; matrix++)
                         for (int e = 0; e < 2; e++) {
                           const int r = transposed ? 2 * q + e : g, c = transposed ? g : 2 * q + e;
                           const void* address = x.rows[8 * matrix + r];
                           if (reinterpret_cast<uintptr_t>(address) % 16) {
                             std::fprintf(stderr, "cuda_emulator: ldmatrix from an address that is no multiple of 16\n");
                             std::abort();
                           }
                           uint16_t value;
                           std::memcpy(&value, static_cast<const char*>(address) + 2 * c, 2);
                           out.r[matrix] |= uint32_t(value) << (16 * e);
                         }
                       return out;
                     });
}

}  // namespace emulator

using __nv_bfloat16 = emulator::Bf16;
using __half = emulator::Fp16;
inline float __bfloat162float(__nv_bfloat16 x) { return emulator::bf16_to_float(x.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return emulator::bf16_of(x); }
inline float __half2float(__half x) { return float(x.value); }
inline __half __float2half_rn(float x) { return {_Float16(x)}; }

inline emulator::ThreadIndex threadIdx;
inline emulator::BlockIndex blockIdx;
inline emulator::GridSize gridDim;
inline emulator::BlockSize blockDim;

inline void __syncthreads() { emulator::wait(emulator::Waits::for_block); }
inline void __syncwarp() { emulator::wait(emulator::Waits::for_warp); }

template <typename T>
T __shfl_sync(unsigned, T value, int source) {
  static_assert(sizeof(T) == 4);
  return emulator::among_lanes([&](emulator::Exchange& x) { std::memcpy(x.words[emulator::lane()], &value, 4); },
                               [&](emulator::Exchange& x) {
                                 T other;
                                 std::memcpy(&other, x.words[source % emulator::kWarp], 4);
                                 return other;
                               });
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int by) {
  return __shfl_sync(mask, value, emulator::lane() ^ by);
}

#define DYNAMIC_SHARED(Type, name)                                                                              \
  Type* const name = reinterpret_cast<Type*>((reinterpret_cast<uintptr_t>(emulator::machine().shared.data()) + 15) & \
                                             ~uintptr_t(15))

#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  emulator::launch(dim3(grid), dim3(block), shared_bytes, [=] { (kernel)(__VA_ARGS__); })

// The runtime calls of the launchers.
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

namespace groundthink {

inline void load_matrices(uint32_t (&out)[4], const void* row) {
  const auto loaded = emulator::load_matrices(row, false);
  std::copy_n(loaded.r, 4, out);
}
inline void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  const auto loaded = emulator::load_matrices(row, true);
  std::copy_n(loaded.r, 4, out);
}

inline uint32_t transposed(uint32_t bits) {
  return emulator::among_lanes([&](emulator::Exchange& x) { x.words[emulator::lane()][0] = bits; },
                               [&](emulator::Exchange& x) {
                                 const int g = emulator::lane() / 4, q = emulator::lane() % 4;
                                 uint32_t out = 0;
                                 for (int e = 0; e < 2; e++) {
                                   const int row = 2 * q + e;
                                   out |= uint32_t(emulator::half_of(x.words[4 * row + g / 2][0], g % 2)) << (16 * e);
                                 }
                                 return out;
                               });
}

inline void multiply_add(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Sums {
    float s[4];
  };
  const Sums sums = emulator::among_lanes(
      [&](emulator::Exchange& x) {
        uint32_t* mine = x.words[emulator::lane()];
        std::copy_n(a, 4, mine);
        mine[4] = b0;
        mine[5] = b1;
      },
      [&](emulator::Exchange& x) {
        const auto a_at = [&](int row, int k) {
          const int lane = 4 * (row % 8) + (k % 8) / 2, reg = row / 8 + 2 * (k / 8);
          return emulator::bf16_to_float(emulator::half_of(x.words[lane][reg], k % 2));
        };
        const auto b_at = [&](int k, int column) {
          const int lane = 4 * column + (k % 8) / 2;
          return emulator::bf16_to_float(emulator::half_of(x.words[lane][4 + k / 8], k % 2));
        };
        Sums out{};
        const int g = emulator::lane() / 4, q = emulator::lane() % 4;
        for (int i = 0; i < 4; i++)
          for (int k = 0; k < 16; k++) out.s[i] += a_at(g + 8 * (i / 2), k) * b_at(k, 2 * q + i % 2);
        return out;
      });
  for (int i = 0; i < 4; i++) acc[i] += sums.s[i];
}

inline void copy_async(void* to, const void* from, bool valid) {
  if ((reinterpret_cast<uintptr_t>(to) | (valid ? reinterpret_cast<uintptr_t>(from) : 0)) % 16) {
    std::fprintf(stderr, "cuda_emulator: cp.async between addresses that are no multiples of 16\n");
    std::abort();
  }
  std::memset(to, 0xff, 16);  // until it is waited for
  emulator::self().open.push_back({to, from, valid});
}
inline void commit_copies() {
  emulator::Fiber& fiber = emulator::self();
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}
template <int kPending>
void wait_for_copies() {
  emulator::Fiber& fiber = emulator::self();
  while (int(fiber.groups.size()) > kPending) {
    for (const emulator::Copy& copy : fiber.groups.front())
      if (copy.valid)
        std::memcpy(copy.to, copy.from, 16);
      else
        std::memset(copy.to, 0, 16);
    fiber.groups.erase(fiber.groups.begin());
  }
}

}  // namespace groundthink
