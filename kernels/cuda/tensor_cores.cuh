// Matrix products of a warp on bf16 tensor cores, and what feeds them.
//
// Names of a lane's place: g = lane / 4, q = lane % 4. The layouts of `mma.m16n8k16` (PTX ISA, "Warp level matrix
// multiply-accumulate"), of A [16 x 16], B [16 x 8] and the fp32 accumulator C [16 x 8]:
//   A  {(g, 2q..), (g+8, 2q..), (g, 8+2q..), (g+8, 8+2q..)}      two neighbours of a row in each register
//   B  {(2q.., g), (8+2q.., g)}                                  two neighbours of a column in each register
//   C  {(g, 2q), (g, 2q+1), (g+8, 2q), (g+8, 2q+1)}
// So the accumulator of X, packed, is an A operand of X and a B operand of its transpose, and an A operand of X
// [16 x 16] holds both B operands of its transpose: no data has to move between lanes.
#pragma once
#include <cstdint>

#include "launch.h"

namespace groundthink {

using bf16 = __nv_bfloat16;
using fp16 = __half;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(fp16 x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ fp16 from_float<fp16>(float x) {
  return __float2half_rn(x);
}

// Two neighbours, from an address that is a multiple of their size.
template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T x, y;
};

template <typename T>
__device__ __forceinline__ float2 load_pair(const T* at) {
  const Pair<T> pair = *reinterpret_cast<const Pair<T>*>(at);
  return make_float2(to_float(pair.x), to_float(pair.y));
}

template <typename T>
__device__ __forceinline__ void store_pair(T* at, float x, float y) {
  *reinterpret_cast<Pair<T>*>(at) = Pair<T>{from_float<T>(x), from_float<T>(y)};
}

// Two numbers of 16 bits in one register, the first in the low half.
template <typename T>
__device__ __forceinline__ uint32_t pack16(float x, float y) {
  static_assert(sizeof(T) == 2);
  union {
    Pair<T> pair;
    uint32_t bits;
  } both;
  both.pair = Pair<T>{from_float<T>(x), from_float<T>(y)};
  return both.bits;
}

__device__ __forceinline__ float2 unpack_bf16(uint32_t bits) {
#ifdef GROUNDTHINK_EMULATED
  return make_float2(emulator::float_of(bits << 16), emulator::float_of(bits & 0xffff0000u));
#else
  return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
#endif
}

// Operands in bf16: in one plane, or in two (the rounded value and what the rounding left), which together keep 16 bits
// of mantissa.
template <int kPlanes, int kRegisters>
struct Operand {
  uint32_t bits[kPlanes][kRegisters];
};

template <int kPlanes, int kRegisters>
__device__ __forceinline__ void pack(Operand<kPlanes, kRegisters>& operand, int at, float x, float y) {
  operand.bits[0][at] = pack16<bf16>(x, y);
  if constexpr (kPlanes == 2) {
    const float2 rounded = unpack_bf16(operand.bits[0][at]);
    operand.bits[1][at] = pack16<bf16>(x - rounded.x, y - rounded.y);
  }
}

// The two numbers that `pack` put there.
template <int kPlanes, int kRegisters>
__device__ __forceinline__ float2 unpack(const Operand<kPlanes, kRegisters>& operand, int at) {
  float2 sum = unpack_bf16(operand.bits[0][at]);
  if constexpr (kPlanes == 2) {
    const float2 rest = unpack_bf16(operand.bits[1][at]);
    sum.x += rest.x;
    sum.y += rest.y;
  }
  return sum;
}

#ifndef GROUNDTHINK_EMULATED
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four 8 x 8 matrices of 16-bit numbers from shared memory; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// One 8 x 8 matrix of 16-bit numbers, held across the warp, transposed.
__device__ __forceinline__ uint32_t transposed(uint32_t bits) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(bits));
  return out;
}

// acc += A B
__device__ __forceinline__ void multiply_add(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes from global to shared memory, zeros where not `valid`; complete after commit_copies and wait_for_copies.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
#endif

template <int kPlanes>
__device__ __forceinline__ void multiply_add(float (&acc)[4], const Operand<kPlanes, 4>& a,
                                             const Operand<kPlanes, 2>& b) {
  multiply_add(acc, a.bits[0], b.bits[0][0], b.bits[0][1]);
  if constexpr (kPlanes == 2) {  // the product of the two rests is below the last bit that is kept
    multiply_add(acc, a.bits[0], b.bits[1][0], b.bits[1][1]);
    multiply_add(acc, a.bits[1], b.bits[0][0], b.bits[0][1]);
  }
}

// A B operand out of two registers of another operand.
template <int kPlanes>
__device__ __forceinline__ Operand<kPlanes, 2> select(const Operand<kPlanes, 4>& from, int first, int second) {
  Operand<kPlanes, 2> to;
#pragma unroll
  for (int plane = 0; plane < kPlanes; plane++) {
    to.bits[plane][0] = from.bits[plane][first];
    to.bits[plane][1] = from.bits[plane][second];
  }
  return to;
}

}  // namespace groundthink
