// wkv6 on a GPU: chunks of 16 positions on tensor cores, exact for every decay from 0 to 1.
//
//     y_t = r_t (S_{t-1} + diag(u) k_t^T v_t),   S_t = diag(w_t) S_{t-1} + k_t^T v_t,   w = exp(log_w)
//
// One block walks over the chunks of one batch row and head, or over a segment of them (below), and keeps the state (in
// the backward pass its gradient) in the accumulators of its warps. Inside a chunk the pairs s < t are split by halving,
// as in wkv6_chunked.py: a pair belongs to the level of the highest bit in which t and s differ, its decay is the product
// of the decays from s+1 to the middle of the level's block and from there to t-1, and each level is one matrix product
// of factors in [0, 1]. Nothing is ever divided or subtracted, so no decay needs a clamp and w = 0 is not special:
//
//     before_l(t)  product of w from the start of t's block of 2^l positions to t-1      (l = 4: from the chunk's start)
//     after_l(t)   product of w from t+1 to the end of that block
//     E_l(t)       r_t before_l(t) where bit l of t is set, k_t after_l(t) where it is not
//     score(t,s)   sum over channels of E_l(t) E_l(s), for the one l at which t > s part;  score(t,t) = sum r_t u k_t
//     y_t          sum_s score(t,s) v_s + r_t before_4(t) S
//
// The gradient of the decay is a sum of non-negative decays times values too. It is often written as a difference of two
// running sums, which loses everything where decays are strong; here
//
//     dlog_w_t = sum over pairs s < t < q of M(q,s)      M(q,s) = what the pair (q,s) adds to r_q dr_q, which is what it
//                                                                 adds to k_s dk_s
// is taken level by level: t lies left of the middle and after s, or right of it and before q, so it is a running sum of
// k dk over the left half, or of r dr over the right half. What lies before the chunk counts as the left half of one more
// level, and what comes after it as the right half of another.
//
// Precision: bf16 values go to the tensor cores as they are and factors are rounded to bf16; fp32 and fp16 values and
// their factors go there in two planes (tensor_cores.cuh), three products for one, with 16 bits of mantissa. Sums,
// decays and states are fp32. No atomics: the same inputs give the same bits.
//
// Segments: where there are fewer rows and heads than the GPU has room for, the chunks of a row are cut into segments.
// A first pass finds what each segment adds to the state and how much of it it keeps, a scan turns that into the state
// before each segment, and then all segments run at once.
#include "wkv6.h"

#include <cstdint>
#include <type_traits>

#include "tensor_cores.cuh"

namespace groundthink {
namespace {

constexpr int kChunk = kWkv6Chunk;
constexpr int kLevels = 4;  // halvings of a chunk
// Rows in shared memory are this many elements longer than they need to be: no two rows of eight share a bank.
constexpr int kPad = 8;
constexpr int kScoreStride = 24;  // of the forward pass, where lanes read and write pairs
constexpr int kKeptScoreStride = 20;  // of the backward pass, where lanes read columns

template <typename V, typename W, int kD>
struct Traits {
  static constexpr int kPlanes = std::is_same_v<V, bf16> ? 1 : 2;
  static constexpr bool kSplit = kPlanes == 2;
  static constexpr int kWarps = kD / 16;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRow = kD + kPad;
};

template <typename T, int kRow>
struct alignas(16) Tile {
  T at[kChunk][kRow];
};

// What lies where in the tensors of one batch row and head.
struct Place {
  int T, H, head;
  long long batch, row;  // row = batch * H + head

  __device__ Place(int T, int H, int row) : T(T), H(H), head(row % H), batch(row / H), row(row) {}
  // Offset of position t in [B,T,H,D].
  template <int kD>
  __device__ long long position(int t) const {
    return ((batch * T + t) * H + head) * kD;
  }
};

struct Segment {
  int first, last;  // chunks first .. last-1
};

__device__ __forceinline__ Segment segment_of(int index, int segments, int chunks) {
  const int size = (chunks + segments - 1) / segments;
  const int first = index * size < chunks ? index * size : chunks;
  const int last = first + size < chunks ? first + size : chunks;
  return {first, last};
}

// Copies 16 positions of D elements to shared memory; positions from T on become zeros.
template <int kThreads, int kRow, typename T>
struct TileCopy {
  static constexpr int kD = kRow - kPad, kPart = 16 / sizeof(T), kParts = kD / kPart;
  static constexpr int kTimes = kChunk * kParts / kThreads, kStride = kThreads / kParts;
  static_assert(kTimes * kThreads == kChunk * kParts);
  int row, part;
  long long offset, next;  // of this thread's first element in the first chunk; from one position to the next

  __device__ explicit TileCopy(const Place& place)
      : row(threadIdx.x / kParts),
        part(threadIdx.x % kParts * kPart),
        offset(place.position<kD>(row) + part),
        next(static_cast<long long>(place.H) * kD) {}

  __device__ __forceinline__ void begin(Tile<T, kRow>& to, const T* from, const Place& place, int chunk) const {
#pragma unroll
    for (int i = 0; i < kTimes; i++) {
      const bool valid = chunk * kChunk + row + i * kStride < place.T;
      const T* const source = from + (offset + (chunk * kChunk + i * kStride) * next);
      copy_async(&to.at[row + i * kStride][part], valid ? source : from, valid);
    }
  }
};

// Rounds a tile to bf16 in two planes, for the tensor cores.
template <int kThreads, typename T, int kRow>
__device__ __forceinline__ void split_tile(Tile<bf16, kRow> (&to)[2], const Tile<T, kRow>& from) {
  constexpr int kPairs = (kRow - kPad) / 2;
#pragma unroll
  for (int time = 0; time < kChunk * kPairs / kThreads; time++) {
    const int i = threadIdx.x + time * kThreads, row = i / kPairs, column = i % kPairs * 2;
    const float2 pair = load_pair(&from.at[row][column]);
    Operand<2, 1> operand;
    pack(operand, 0, pair.x, pair.y);
#pragma unroll
    for (int plane = 0; plane < 2; plane++)
      *reinterpret_cast<uint32_t*>(&to[plane].at[row][column]) = operand.bits[plane][0];
  }
}

// A 16 x 16 A operand from rows `row` .. row+15 and columns `column` .. column+15 of a tile.
template <int kPlanes, int kRow>
__device__ __forceinline__ Operand<kPlanes, 4> load_a(const bf16 (*const (&planes)[kPlanes])[kRow], int row,
                                                      int column) {
  const int lane = threadIdx.x % 32;
  Operand<kPlanes, 4> out;
#pragma unroll
  for (int plane = 0; plane < kPlanes; plane++)
    load_matrices(out.bits[plane], &planes[plane][row + lane % 16][column + lane / 16 * 8]);
  return out;
}

// The B operands of two tiles of 8 columns: the contraction runs over rows row .. row+15, columns from `column` on.
// Registers: {first tile, second tile} of 2. Also the A operand of the transpose, in the order {0, 2, 1, 3}.
template <int kPlanes, int kRow>
__device__ __forceinline__ Operand<kPlanes, 4> load_b(const bf16 (*const (&planes)[kPlanes])[kRow], int row,
                                                      int column) {
  const int lane = threadIdx.x % 32;
  Operand<kPlanes, 4> out;
#pragma unroll
  for (int plane = 0; plane < kPlanes; plane++)
    load_matrices_transposed(out.bits[plane], &planes[plane][row + lane % 16][column + lane / 16 * 8]);
  return out;
}

// The A operand of the transpose of a block: rows of A are the columns column .. column+15.
template <int kPlanes, int kRow>
__device__ __forceinline__ Operand<kPlanes, 4> load_a_transposed(const bf16 (*const (&planes)[kPlanes])[kRow], int row,
                                                                 int column) {
  const int lane = threadIdx.x % 32;
  Operand<kPlanes, 4> out;
#pragma unroll
  for (int plane = 0; plane < kPlanes; plane++)
    load_matrices_transposed(out.bits[plane],
                             &planes[plane][row + lane / 16 * 8 + lane % 8][column + lane / 8 % 2 * 8]);
  return out;
}

// The planes of an array of tiles, as the functions above take them.
template <int kPlanes, int kRow>
struct Planes {
  const bf16 (*rows[kPlanes])[kRow];
  __device__ explicit Planes(const Tile<bf16, kRow> (&tiles)[kPlanes]) {
#pragma unroll
    for (int plane = 0; plane < kPlanes; plane++) rows[plane] = tiles[plane].at;
  }
  __device__ explicit Planes(const Tile<bf16, kRow>& tile) {
    static_assert(kPlanes == 1);
    rows[0] = tile.at;
  }
};

// Whether the pair of positions with the low three bits t and s, t > s, parts at `level` < 3.
__device__ __forceinline__ bool parts_at(int level, int t, int s) { return t > s && (t ^ s) >> level == 1; }

// ------------------------------------------------------------------------------------------------------ forward ----

template <typename V, typename W, int kD>
struct ForwardShared {
  using Is = Traits<V, W, kD>;
  struct Stage {
    Tile<V, Is::kRow> r, k, v;
    Tile<W, Is::kRow> log_w;
  } stage[2];
  Tile<bf16, Is::kRow> r_decayed[Is::kPlanes], k_decayed[Is::kPlanes];
  Tile<bf16, Is::kRow> v_split[Is::kSplit ? 2 : 1];
  alignas(16) float scores[Is::kWarps][kChunk][kScoreStride];  // what the channels of each warp add
  alignas(16) float kept[kD];                                  // product of w over the chunk
};

template <typename V, typename W>
struct ForwardArguments {
  int T, H, segments;
  const V *r, *k, *v;
  const W* log_w;
  const float* u;
  const float* initial;  // [rows,segments,D,D], the state before each segment
  V* y;
  float* final;         // [rows,D,D]; of a survey [rows,segments,D,D], what each segment adds
  float* kept;          // of a survey: [rows,segments,D], how much of the state a segment keeps
  bf16* checkpoints;    // [rows,chunks,planes,D (value),D (key)] or null
  float* scores;        // [rows,chunks,16,16] or null
};

// Decays and factors of a lane: positions g and g+8, channels first + {2q, 2q+1, 2q+8, 2q+9}.
template <typename Stage>
struct ForwardFactors {
  float r[2][2][2], k[2][2][2], before[2][2][2], after[2][2][2], block[2][2][2];  // [position][pair][element]

  __device__ ForwardFactors(const Stage& in, int first, int g, int q) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int t = g + 8 * i, c = first + 2 * q + 8 * j;
        const float2 r_pair = load_pair(&in.r.at[t][c]), k_pair = load_pair(&in.k.at[t][c]);
        const float2 w_pair = load_pair(&in.log_w.at[t][c]);
        r[i][j][0] = r_pair.x, r[i][j][1] = r_pair.y;
        k[i][j][0] = k_pair.x, k[i][j][1] = k_pair.y;
        block[i][j][0] = expf(w_pair.x), block[i][j][1] = expf(w_pair.y);
#pragma unroll
        for (int e = 0; e < 2; e++) before[i][j][e] = after[i][j][e] = 1.0f;
      }
  }

  // From factors of blocks of 2^level positions to those of twice as many.
  __device__ void widen(int level, int g) {
    const bool right = g >> level & 1;
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        if (level < 3) {
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const float sibling = __shfl_xor_sync(0xffffffffu, block[i][j][e], 4 << level);
            if (right)
              before[i][j][e] *= sibling;
            else
              after[i][j][e] *= sibling;
            block[i][j][e] *= sibling;
          }
        } else {
          before[1][j][e] *= block[0][j][e];
          after[0][j][e] *= block[1][j][e];
          block[0][j][e] *= block[1][j][e];  // of the whole chunk from here on
        }
      }
  }
};

// Scores of the pairs s < t of a chunk, as far as this warp's channels carry them; [tile of s][accumulator].
template <int kPlanes, typename Factors>
__device__ __forceinline__ void add_level(float (&scores)[2][4], const Factors& is, int level, int g, int q) {
  Operand<kPlanes, 4> E;
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 2; j++) {
      float at[2];
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const bool right = level < 3 ? g >> level & 1 : i == 1;
        at[e] = right ? is.r[i][j][e] * is.before[i][j][e] : is.k[i][j][e] * is.after[i][j][e];
      }
      pack(E, i + 2 * j, at[0], at[1]);
    }
  float low[4] = {0, 0, 0, 0};
  multiply_add(low, E, select(E, 0, 2));  // all t, s < 8
  if (level == 3) {
    scores[0][2] = low[2], scores[0][3] = low[3];
    return;
  }
  float high[4] = {0, 0, 0, 0};
  multiply_add(high, E, select(E, 1, 3));  // all t, s >= 8
#pragma unroll
  for (int e = 0; e < 2; e++)
    if (parts_at(level, g, 2 * q + e)) {
      scores[0][e] = low[e];
      scores[1][2 + e] = high[2 + e];
    }
}

// A survey finds only what a segment adds to the state and keeps of it.
template <typename V, typename W, int kD, bool kSurvey>
__global__ void __launch_bounds__(Traits<V, W, kD>::kThreads)
    wkv6_forward_kernel(const ForwardArguments<V, W> args) {
  using Is = Traits<V, W, kD>;
  using Shared = ForwardShared<V, W, kD>;
  constexpr int kPlanes = Is::kPlanes, kTiles = kD / 8, kSteps = kD / 16;
  DYNAMIC_SHARED(Shared, shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int first = 16 * warp;  // of this warp's channels, and of its columns of the state
  const Place place(args.T, args.H, blockIdx.x);
  const int chunks = (args.T + kChunk - 1) / kChunk;
  const Segment segment = segment_of(blockIdx.y, args.segments, chunks);
  const long long state_at = (place.row * args.segments + blockIdx.y) * kD * kD;

  const TileCopy<Is::kThreads, Is::kRow, V> values(place);
  const TileCopy<Is::kThreads, Is::kRow, W> decays(place);
  const auto fetch = [&](int chunk) {
    if (chunk < segment.last) {
      auto& to = shared->stage[chunk % 2];
      if constexpr (!kSurvey) values.begin(to.r, args.r, place, chunk);
      values.begin(to.k, args.k, place, chunk);
      values.begin(to.v, args.v, place, chunk);
      decays.begin(to.log_w, args.log_w, place, chunk);
    }
    commit_copies();
  };
  fetch(segment.first);

  // the transposed state: values first + g (+8), keys 8j + 2q (+1)
  float state[kTiles][4];
#pragma unroll
  for (int j = 0; j < kTiles; j++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      state[j][e] =
          kSurvey ? 0.0f : args.initial[state_at + (8 * j + 2 * q + e % 2) * kD + first + g + 8 * (e / 2)];
  float bonus[2][2], kept[2][2];
#pragma unroll
  for (int j = 0; j < 2; j++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      bonus[j][e] = kSurvey ? 0.0f : args.u[place.head * kD + first + 2 * q + 8 * j + e];
      kept[j][e] = 1.0f;
    }

  for (int chunk = segment.first; chunk < segment.last; chunk++) {
    wait_for_copies<0>();
    __syncthreads();
    fetch(chunk + 1);
    const auto& in = shared->stage[chunk % 2];

    // channels first .. first+15: factors and scores
    {
      ForwardFactors is(in, first, g, q);
      float scores[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
#pragma unroll
      for (int level = 0; level < kLevels; level++) {
        if constexpr (!kSurvey) add_level<kPlanes>(scores, is, level, g, q);
        is.widen(level, g);
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float diagonal = 0.0f;
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const int t = g + 8 * i, c = first + 2 * q + 8 * j;
          Operand<kPlanes, 1> r_pair, k_pair;
          pack(r_pair, 0, is.r[i][j][0] * is.before[i][j][0], is.r[i][j][1] * is.before[i][j][1]);
          pack(k_pair, 0, is.k[i][j][0] * is.after[i][j][0], is.k[i][j][1] * is.after[i][j][1]);
#pragma unroll
          for (int plane = 0; plane < kPlanes; plane++) {
            if constexpr (!kSurvey)
              *reinterpret_cast<uint32_t*>(&shared->r_decayed[plane].at[t][c]) = r_pair.bits[plane][0];
            *reinterpret_cast<uint32_t*>(&shared->k_decayed[plane].at[t][c]) = k_pair.bits[plane][0];
          }
#pragma unroll
          for (int e = 0; e < 2; e++) diagonal += is.r[i][j][e] * bonus[j][e] * is.k[i][j][e];
        }
        if constexpr (!kSurvey) {
          diagonal += __shfl_xor_sync(0xffffffffu, diagonal, 1);
          diagonal += __shfl_xor_sync(0xffffffffu, diagonal, 2);
          if (q == g / 2) {  // the lane that holds (t, t)
            if (g % 2)
              scores[i][2 * i + 1] = diagonal;
            else
              scores[i][2 * i] = diagonal;
          }
        }
      }
#pragma unroll
      for (int j = 0; j < 2; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const float product = is.block[0][j][e];
          if (g == 0) shared->kept[first + 2 * q + 8 * j + e] = product;
          kept[j][e] *= product;
        }
      if constexpr (!kSurvey) {
#pragma unroll
        for (int tile = 0; tile < 2; tile++)
#pragma unroll
          for (int i = 0; i < 2; i++)
            store_pair(&shared->scores[warp][g + 8 * i][8 * tile + 2 * q], scores[tile][2 * i],
                       scores[tile][2 * i + 1]);
      }
    }
    if constexpr (Is::kSplit) split_tile<Is::kThreads>(shared->v_split, in.v);
    __syncthreads();

    // values first .. first+15: outputs and state
    const auto v_planes = [&] {
      if constexpr (Is::kSplit)
        return Planes<kPlanes, Is::kRow>(shared->v_split);
      else
        return Planes<kPlanes, Is::kRow>(in.v);
    }();
    const Operand<kPlanes, 4> v = load_b(v_planes.rows, 0, first);
    if constexpr (!kSurvey) {
      const long long chunk_at = place.row * chunks + chunk;
      bf16* const checkpoint = args.checkpoints + (chunk_at * kPlanes * kD + first + g) * kD + 2 * q;
      float y[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
      Operand<kPlanes, 4> scores;
#pragma unroll
      for (int tile = 0; tile < 2; tile++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
          float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
          for (int other = 0; other < Is::kWarps; other++) {
            const float2 part = load_pair(&shared->scores[other][g + 8 * i][8 * tile + 2 * q]);
            sum.x += part.x;
            sum.y += part.y;
          }
          pack(scores, i + 2 * tile, sum.x, sum.y);
          if (args.scores != nullptr && warp == 0)
            store_pair(&args.scores[(chunk_at * kChunk + g + 8 * i) * kChunk + 8 * tile + 2 * q], sum.x, sum.y);
        }
      multiply_add(y[0], scores, select(v, 0, 1));
      multiply_add(y[1], scores, select(v, 2, 3));
      const Planes<kPlanes, Is::kRow> r_planes(shared->r_decayed);
#pragma unroll
      for (int step = 0; step < kSteps; step++) {
        const Operand<kPlanes, 4> r = load_a(r_planes.rows, 0, 16 * step);
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
          Operand<kPlanes, 2> S;
          pack(S, 0, state[2 * step][2 * tile], state[2 * step][2 * tile + 1]);
          pack(S, 1, state[2 * step + 1][2 * tile], state[2 * step + 1][2 * tile + 1]);
          multiply_add(y[tile], r, S);
          if (args.checkpoints != nullptr) {
#pragma unroll
            for (int plane = 0; plane < kPlanes; plane++) {
              bf16* const to = checkpoint + (plane * kD + 8 * tile) * kD + 16 * step;
              *reinterpret_cast<uint32_t*>(to) = S.bits[plane][0];
              *reinterpret_cast<uint32_t*>(to + 8) = S.bits[plane][1];
            }
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int t = chunk * kChunk + g + 8 * i;
        V* const to = args.y + place.position<kD>(t) + first + 2 * q;
        if (t < args.T)
#pragma unroll
          for (int tile = 0; tile < 2; tile++) store_pair(to + 8 * tile, y[tile][2 * i], y[tile][2 * i + 1]);
      }
    }
    Operand<kPlanes, 4> v_transposed;
#pragma unroll
    for (int plane = 0; plane < kPlanes; plane++) {
      v_transposed.bits[plane][0] = v.bits[plane][0];
      v_transposed.bits[plane][1] = v.bits[plane][2];
      v_transposed.bits[plane][2] = v.bits[plane][1];
      v_transposed.bits[plane][3] = v.bits[plane][3];
    }
    const Planes<kPlanes, Is::kRow> k_planes(shared->k_decayed);
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
      const Operand<kPlanes, 4> k = load_b(k_planes.rows, 0, 16 * step);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int j = 2 * step + half;
        const float2 keeps = load_pair(&shared->kept[8 * j + 2 * q]);
        state[j][0] *= keeps.x, state[j][1] *= keeps.y, state[j][2] *= keeps.x, state[j][3] *= keeps.y;
        multiply_add(state[j], v_transposed, select(k, 2 * half, 2 * half + 1));
      }
    }
  }

  if (kSurvey || blockIdx.y + 1 == args.segments) {
    float* const to = args.final + (kSurvey ? state_at : place.row * kD * kD);
#pragma unroll
    for (int j = 0; j < kTiles; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) to[(8 * j + 2 * q + e % 2) * kD + first + g + 8 * (e / 2)] = state[j][e];
  }
  if (kSurvey && g == 0) {
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
      for (int e = 0; e < 2; e++)
        args.kept[(place.row * args.segments + blockIdx.y) * kD + first + 2 * q + 8 * j + e] = kept[j][e];
  }
}

// ----------------------------------------------------------------------------------------------------- backward ----

template <typename V, typename W, int kD>
struct BackwardShared {
  using Is = Traits<V, W, kD>;
  struct Stage {
    Tile<V, Is::kRow> r, k, v, dy;
    Tile<W, Is::kRow> log_w;
    alignas(16) bf16 checkpoint[Is::kPlanes][kD][Is::kRow];  // value by key
    alignas(16) float scores[kChunk][kKeptScoreStride];
  } stage[2];
  alignas(16) bf16 gradient[Is::kPlanes][kD][Is::kRow];  // of the state after the chunk, key by value
  Tile<bf16, Is::kRow> k_decayed[Is::kPlanes];
  Tile<bf16, Is::kRow> v_split[Is::kSplit ? 2 : 1], dy_split[Is::kSplit ? 2 : 1];
};

template <typename V, typename W>
struct BackwardArguments {
  int T, H, segments;
  const V *r, *k, *v;
  const W* log_w;
  const float* u;
  const bf16* checkpoints;
  const float* scores;
  const V* dy;
  const float* dfinal;  // [rows,segments,D,D], gradient of the state after each segment
  V *dr, *dk, *dv;
  W* dlog_w;
  float* du;        // [rows,segments,D]
  float* dinitial;  // [rows,D,D]; of a survey [rows,segments,D,D], what each segment adds
  float* kept;      // of a survey: [rows,segments,D]
};

// Sums over the lanes of a quad before and after this one.
struct QuadSums {
  float before, after, all;
  __device__ __forceinline__ QuadSums(float x, int q) {
    const float next = __shfl_xor_sync(0xffffffffu, x, 1);
    const float pair = x + next;
    const float other = __shfl_xor_sync(0xffffffffu, pair, 2);
    before = (q & 1 ? next : 0.0f) + (q & 2 ? other : 0.0f);
    after = (q & 1 ? 0.0f : next) + (q & 2 ? 0.0f : other);
    all = pair + other;
  }
};

// Decays and factors of a lane: channels first + g (+8), positions 8n + 2q (+1); [channel][n][element].
template <typename Stage>
struct BackwardFactors {
  float r[2][2][2], k[2][2][2], before[2][2][2], after[2][2][2], block[2][2][2];

  __device__ BackwardFactors(const Stage& in, int first, int g, int q) {
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int t = 8 * n + 2 * q + e, c = first + g + 8 * m;
          r[m][n][e] = to_float(in.r.at[t][c]);
          k[m][n][e] = to_float(in.k.at[t][c]);
          block[m][n][e] = expf(to_float(in.log_w.at[t][c]));
          before[m][n][e] = after[m][n][e] = 1.0f;
        }
  }

  static __device__ __forceinline__ bool is_right(int level, int q, int n, int e) {
    return level == 0 ? e == 1 : level == 3 ? n == 1 : q >> (level - 1) & 1;
  }

  __device__ __forceinline__ float factor(int level, int q, int m, int n, int e) const {
    return is_right(level, q, n, e) ? before[m][n][e] : after[m][n][e];
  }

  __device__ __forceinline__ float value(int level, int q, int m, int n, int e) const {
    return is_right(level, q, n, e) ? r[m][n][e] : k[m][n][e];
  }

  __device__ void widen(int level, int q) {
#pragma unroll
    for (int m = 0; m < 2; m++) {
      float sibling[2][2];
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 2; e++)
          sibling[n][e] = level == 0   ? block[m][n][1 - e]
                          : level == 3 ? block[m][1 - n][e]
                                       : __shfl_xor_sync(0xffffffffu, block[m][n][e], level);
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          if (is_right(level, q, n, e))
            before[m][n][e] *= sibling[n][e];
          else
            after[m][n][e] *= sibling[n][e];
          block[m][n][e] *= sibling[n][e];
        }
    }
  }

  // The A operand [channels x positions] of some function of channel, tile and element.
  template <int kPlanes, typename At>
  static __device__ __forceinline__ Operand<kPlanes, 4> operand(At at) {
    Operand<kPlanes, 4> out;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
      for (int n = 0; n < 2; n++) pack(out, m + 2 * n, at(m, n, 0), at(m, n, 1));
    return out;
  }
};

// Writes what a warp holds as [channel][n][element] to positions of 16 channels from `first` on.
template <int kD, typename T>
__device__ __forceinline__ void store_transposed(T* to, const float (&value)[2][2][2], const Place& place, int chunk,
                                                 int first, int g, int q) {
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int n = 0; n < 2; n++) {
      if constexpr (sizeof(T) == 2) {
        const uint32_t bits = transposed(pack16<T>(value[m][n][0], value[m][n][1]));
        const int t = chunk * kChunk + 8 * n + g;
        T* const row = to + place.position<kD>(t) + first + 2 * q;
        if (t < place.T) *reinterpret_cast<uint32_t*>(row + 8 * m) = bits;
      } else {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int t = chunk * kChunk + 8 * n + 2 * q + e;
          if (t < place.T) to[place.position<kD>(t) + first + 8 * m + g] = from_float<T>(value[m][n][e]);
        }
      }
    }
}

template <typename V, typename W, int kD, bool kSurvey>
__global__ void __launch_bounds__(Traits<V, W, kD>::kThreads)
    wkv6_backward_kernel(const BackwardArguments<V, W> args) {
  using Is = Traits<V, W, kD>;
  using Shared = BackwardShared<V, W, kD>;
  using Factors = BackwardFactors<typename Shared::Stage>;
  constexpr int kPlanes = Is::kPlanes, kTiles = kD / 8, kSteps = kD / 16;
  DYNAMIC_SHARED(Shared, shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
  const int first = 16 * warp;  // of this warp's channels, rows of the state, and values
  const Place place(args.T, args.H, blockIdx.x);
  const int chunks = (args.T + kChunk - 1) / kChunk;
  const Segment segment = segment_of(blockIdx.y, args.segments, chunks);
  const long long segment_row = place.row * args.segments + blockIdx.y;

  const TileCopy<Is::kThreads, Is::kRow, V> values(place);
  const TileCopy<Is::kThreads, Is::kRow, W> decays(place);
  const auto fetch = [&](int chunk) {
    if (chunk >= segment.first) {
      auto& to = shared->stage[chunk % 2];
      values.begin(to.r, args.r, place, chunk);
      values.begin(to.dy, args.dy, place, chunk);
      decays.begin(to.log_w, args.log_w, place, chunk);
      if constexpr (!kSurvey) {
        values.begin(to.k, args.k, place, chunk);
        values.begin(to.v, args.v, place, chunk);
        const long long chunk_at = place.row * chunks + chunk;
        constexpr int kParts = kD / 8, kStride = Is::kThreads / kParts;  // of a row; rows at once
        const int row = threadIdx.x / kParts, part = threadIdx.x % kParts * 8;
        const bf16* const checkpoint = args.checkpoints + chunk_at * kPlanes * kD * kD + row * kD + part;
#pragma unroll
        for (int plane = 0; plane < kPlanes; plane++)
#pragma unroll
          for (int i = 0; i < kD; i += kStride)
            copy_async(&to.checkpoint[plane][row + i][part], checkpoint + (plane * kD + i) * kD, true);
        if (threadIdx.x < kChunk * kChunk / 4)
          copy_async(&to.scores[threadIdx.x / 4][threadIdx.x % 4 * 4],
                     args.scores + chunk_at * kChunk * kChunk + 4 * threadIdx.x, true);
      }
    }
    commit_copies();
  };
  fetch(segment.last - 1);

  // gradient of the state after the chunk: keys first + g (+8), values 8j + 2q (+1)
  float gradient[kTiles][4];
#pragma unroll
  for (int j = 0; j < kTiles; j++)
#pragma unroll
    for (int m = 0; m < 2; m++) {
      const float2 pair = kSurvey ? make_float2(0.0f, 0.0f)
                                  : load_pair(args.dfinal + (segment_row * kD + first + g + 8 * m) * kD + 8 * j + 2 * q);
      gradient[j][2 * m] = pair.x, gradient[j][2 * m + 1] = pair.y;
    }
  float bonus[2], du[2] = {0.0f, 0.0f}, kept[2] = {1.0f, 1.0f};
#pragma unroll
  for (int m = 0; m < 2; m++) bonus[m] = kSurvey ? 0.0f : args.u[place.head * kD + first + g + 8 * m];

  for (int chunk = segment.last - 1; chunk >= segment.first; chunk--) {
    wait_for_copies<0>();
    __syncthreads();
    fetch(chunk - 1);
    const auto& in = shared->stage[chunk % 2];
    if constexpr (Is::kSplit) {
      split_tile<Is::kThreads>(shared->dy_split, in.dy);
      if constexpr (!kSurvey) split_tile<Is::kThreads>(shared->v_split, in.v);
      __syncthreads();
    }
    const auto dy_planes = [&] {
      if constexpr (Is::kSplit)
        return Planes<kPlanes, Is::kRow>(shared->dy_split);
      else
        return Planes<kPlanes, Is::kRow>(in.dy);
    }();

    Factors is(in, first, g, q);
    if constexpr (kSurvey) {
#pragma unroll
      for (int level = 0; level < kLevels; level++) is.widen(level, q);
    } else {
      const auto v_planes = [&] {
        if constexpr (Is::kSplit)
          return Planes<kPlanes, Is::kRow>(shared->v_split);
        else
          return Planes<kPlanes, Is::kRow>(in.v);
      }();
      const bf16(*S_planes[kPlanes])[Is::kRow];
      const bf16(*G_planes[kPlanes])[Is::kRow];
#pragma unroll
      for (int plane = 0; plane < kPlanes; plane++)
        S_planes[plane] = in.checkpoint[plane], G_planes[plane] = shared->gradient[plane];

      // products over values: dy v^T and v dy^T [16 x 16], S dy^T and G v^T [16 channels x 16], and sum_v S G
      float dy_v[2][4] = {}, v_dy[2][4] = {}, S_dy[2][4] = {}, G_v[2][4] = {}, spanning[2] = {0.0f, 0.0f};
#pragma unroll
      for (int step = 0; step < kSteps; step++) {
        const Operand<kPlanes, 4> dy = load_a(dy_planes.rows, 0, 16 * step), v = load_a(v_planes.rows, 0, 16 * step);
        const Operand<kPlanes, 4> S = load_a_transposed(S_planes, 16 * step, first);
        Operand<kPlanes, 4> G;
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
          for (int m = 0; m < 2; m++) {
            const float* const pair = &gradient[2 * step + half][2 * m];
            const int at = m + 2 * half;
            pack(G, at, pair[0], pair[1]);
            const float2 state = unpack(S, at);
            spanning[m] += state.x * pair[0] + state.y * pair[1];
#pragma unroll
            for (int plane = 0; plane < kPlanes; plane++)
              *reinterpret_cast<uint32_t*>(
                  &shared->gradient[plane][first + g + 8 * m][16 * step + 8 * half + 2 * q]) = G.bits[plane][at];
          }
#pragma unroll
        for (int n = 0; n < 2; n++) {
          multiply_add(dy_v[n], dy, select(v, n, n + 2));
          multiply_add(v_dy[n], v, select(dy, n, n + 2));
          multiply_add(S_dy[n], S, select(dy, n, n + 2));
          multiply_add(G_v[n], G, select(v, n, n + 2));
        }
      }
#pragma unroll
      for (int m = 0; m < 2; m++) spanning[m] = QuadSums(spanning[m], q).all;

      // dy_t v_s where t > s, and its mirror image: as the tile that the products below contract with
      float pairs[2][4];
#pragma unroll
      for (int tile = 0; tile < 2; tile++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int row = g + 8 * (e / 2), column = 8 * tile + 2 * q + e % 2;
          pairs[tile][e] = row > column ? dy_v[tile][e] : v_dy[tile][e];
        }

      float dr[2][2][2] = {}, dk[2][2][2] = {}, dlog_w[2][2][2] = {};
#pragma unroll
      for (int level = 0; level < kLevels; level++) {
        const Operand<kPlanes, 4> E = Factors::template operand<kPlanes>([&](int m, int n, int e) {
          return is.value(level, q, m, n, e) * is.factor(level, q, m, n, e);
        });
        float product[2][4] = {};
#pragma unroll
        for (int n = 0; n < 2; n++) {
          Operand<kPlanes, 2> B;
#pragma unroll
          for (int half = 0; half < 2; half++) {  // positions 8 half + 2q (+1) against position 8n + g
            float x[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
              const bool here = level == 3 ? half != n : half == n && (g ^ (2 * q + e)) >> level == 1;
              x[e] = here ? pairs[half][2 * n + e] : 0.0f;
            }
            pack(B, half, x[0], x[1]);
          }
          multiply_add(product[n], E, B);
        }
#pragma unroll
        for (int m = 0; m < 2; m++) {
          float share[2][2];  // of the level in r dr (right of the middle) or k dk (left of it)
#pragma unroll
          for (int n = 0; n < 2; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
              const float part = product[n][2 * m + e] * is.factor(level, q, m, n, e);
              share[n][e] = part * is.value(level, q, m, n, e);
              if (Factors::is_right(level, q, n, e))
                dr[m][n][e] += part;
              else
                dk[m][n][e] += part;
            }
          if (level == 3) {
            const QuadSums left(share[0][0] + share[0][1], q), right(share[1][0] + share[1][1], q);
            dlog_w[m][0][0] += left.before;
            dlog_w[m][0][1] += left.before + share[0][0];
            dlog_w[m][1][0] += right.after + share[1][1];
            dlog_w[m][1][1] += right.after;
          } else if (level > 0) {
#pragma unroll
            for (int n = 0; n < 2; n++) {
              const bool is_right = Factors::is_right(level, q, n, 0);
              float outside = 0.0f;  // the other pair of the half, where it lies on the side of the sum
              if (level == 2) {
                const float other = __shfl_xor_sync(0xffffffffu, share[n][0] + share[n][1], 1);
                if ((q & 1) != is_right) outside = other;
              }
              dlog_w[m][n][0] += is_right ? outside + share[n][1] : outside;
              dlog_w[m][n][1] += is_right ? outside : outside + share[n][0];
            }
          }
        }
        is.widen(level, q);
      }

      // what came before the chunk, what comes after it, and the bonus
      const float corner[2] = {g % 2 ? dy_v[0][1] : dy_v[0][0], g % 2 ? dy_v[1][3] : dy_v[1][2]};
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int x = 2 * q + e;
          const float diagonal = __shfl_sync(0xffffffffu, corner[n], 4 * x + x / 2);  // dy_t v_t
#pragma unroll
          for (int m = 0; m < 2; m++) {
            dr[m][n][e] += S_dy[n][2 * m + e] * is.before[m][n][e] + bonus[m] * is.k[m][n][e] * diagonal;
            dk[m][n][e] += G_v[n][2 * m + e] * is.after[m][n][e] + bonus[m] * is.r[m][n][e] * diagonal;
            du[m] += is.r[m][n][e] * is.k[m][n][e] * diagonal;
          }
        }
#pragma unroll
      for (int m = 0; m < 2; m++) {
        float past[2][2], future[2][2];  // in r dr and k dk
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) {
            past[n][e] = S_dy[n][2 * m + e] * is.before[m][n][e] * is.r[m][n][e];
            future[n][e] = G_v[n][2 * m + e] * is.after[m][n][e] * is.k[m][n][e];
          }
        const QuadSums past_low(past[0][0] + past[0][1], q), past_high(past[1][0] + past[1][1], q);
        const QuadSums future_low(future[0][0] + future[0][1], q), future_high(future[1][0] + future[1][1], q);
        const float through = spanning[m] * is.block[m][0][0];
        dlog_w[m][0][0] += through + future_low.before + past_low.after + past[0][1] + past_high.all;
        dlog_w[m][0][1] += through + future_low.before + future[0][0] + past_low.after + past_high.all;
        dlog_w[m][1][0] += through + future_low.all + future_high.before + past_high.after + past[1][1];
        dlog_w[m][1][1] += through + future_low.all + future_high.before + future[1][0] + past_high.after;
      }
      store_transposed<kD>(args.dr, dr, place, chunk, first, g, q);
      store_transposed<kD>(args.dk, dk, place, chunk, first, g, q);
      store_transposed<kD>(args.dlog_w, dlog_w, place, chunk, first, g, q);

#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < 2; n++) {
          Operand<kPlanes, 1> pair;
          pack(pair, 0, is.k[m][n][0] * is.after[m][n][0], is.k[m][n][1] * is.after[m][n][1]);
#pragma unroll
          for (int plane = 0; plane < kPlanes; plane++) {
            // to rows of positions, which the other warps read
            const uint32_t bits = transposed(pair.bits[plane][0]);
            *reinterpret_cast<uint32_t*>(&shared->k_decayed[plane].at[8 * n + g][first + 8 * m + 2 * q]) = bits;
          }
        }
      __syncthreads();

      // values first .. first+15: dv^T = G^T (k after)^T + dy^T scores
      float dv[2][4] = {};
      const Planes<kPlanes, Is::kRow> k_planes(shared->k_decayed);
#pragma unroll
      for (int step = 0; step < kSteps; step++) {
        const Operand<kPlanes, 4> G = load_a_transposed(G_planes, 16 * step, first);
        const Operand<kPlanes, 4> k = load_a(k_planes.rows, 0, 16 * step);
#pragma unroll
        for (int n = 0; n < 2; n++) multiply_add(dv[n], G, select(k, n, n + 2));
      }
      const Operand<kPlanes, 4> dy = load_a_transposed(dy_planes.rows, 0, first);
#pragma unroll
      for (int n = 0; n < 2; n++) {
        Operand<kPlanes, 2> scores;
#pragma unroll
        for (int half = 0; half < 2; half++)
          pack(scores, half, in.scores[8 * half + 2 * q][8 * n + g], in.scores[8 * half + 2 * q + 1][8 * n + g]);
        multiply_add(dv[n], dy, scores);
      }
      float dv_at[2][2][2];
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
          for (int e = 0; e < 2; e++) dv_at[m][n][e] = dv[n][2 * m + e];
      store_transposed<kD>(args.dv, dv_at, place, chunk, first, g, q);
    }

    // gradient of the state before the chunk
    const Operand<kPlanes, 4> r = Factors::template operand<kPlanes>(
        [&](int m, int n, int e) { return is.r[m][n][e] * is.before[m][n][e]; });
#pragma unroll
    for (int m = 0; m < 2; m++) kept[m] *= is.block[m][0][0];
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
      const Operand<kPlanes, 4> dy = load_b(dy_planes.rows, 0, 16 * step);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float(&tile)[4] = gradient[2 * step + half];
#pragma unroll
        for (int e = 0; e < 4; e++) tile[e] *= is.block[e / 2][0][0];
        multiply_add(tile, r, select(dy, 2 * half, 2 * half + 1));
      }
    }
  }

  if (kSurvey || blockIdx.y == 0) {
    float* const to = args.dinitial + (kSurvey ? segment_row : place.row) * kD * kD;
#pragma unroll
    for (int j = 0; j < kTiles; j++)
#pragma unroll
      for (int m = 0; m < 2; m++)
        store_pair(to + (first + g + 8 * m) * kD + 8 * j + 2 * q, gradient[j][2 * m], gradient[j][2 * m + 1]);
  }
#pragma unroll
  for (int m = 0; m < 2; m++) {
    const float sum = QuadSums(du[m], q).all;
    float* const to = kSurvey ? args.kept : args.du;
    if (q == 0) to[segment_row * kD + first + g + 8 * m] = kSurvey ? kept[m] : sum;
  }
}

// ----------------------------------------------------------------------------------------- segments and the bonus ----

// From what each segment adds and keeps to the state at its near end; `forward` walks from the first segment on. `start`
// is the state that comes in, [rows,D,D]; near [rows,segments,D,D].
__global__ void wkv6_scan_segments_kernel(const float* start, const float* added, const float* kept, float* near, int D,
                                          int segments, bool forward, long long elements) {
  const long long index = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= elements) return;
  const long long size = static_cast<long long>(D) * D, row = index / size, at = index % size;
  float state = start[index];
  for (int step = 0; step < segments; step++) {
    const long long segment = row * segments + (forward ? step : segments - 1 - step);
    near[segment * size + at] = state;
    state = kept[segment * D + at / D] * state + added[segment * size + at];
  }
}

// du [H,D] from its parts [B,H,segments,D], in one order always: a block a head, several threads a channel.
constexpr int kBonusThreads = 256;

__global__ void wkv6_sum_bonus_kernel(const float* parts, float* du, int B, int H, int segments, int D) {
  DYNAMIC_SHARED(float, sums);
  const int channel = threadIdx.x % D, part = threadIdx.x / D, stride = kBonusThreads / D, head = blockIdx.x;
  float sum = 0.0f;
  for (int row = part; row < B * segments; row += stride)
    sum += parts[((static_cast<long long>(row / segments) * H + head) * segments + row % segments) * D + channel];
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (part == 0) {
    for (int other = 1; other < stride; other++) sum += sums[other * D + channel];
    du[head * D + channel] = sum;
  }
}

int chunks_of(const Wkv6Shape& shape) { return (shape.T + kChunk - 1) / kChunk; }

// Cutting costs a survey (about half a pass) and two launches: it pays from three segments of eight chunks on.
int segments_of(const Wkv6Shape& shape, int multiprocessors) {
  const long long rows = static_cast<long long>(shape.B) * shape.H;
  const long long room = 2LL * multiprocessors / rows, most = chunks_of(shape) / 8;
  const long long segments = room < most ? room : most;
  return segments < 3 ? 1 : static_cast<int>(segments);
}

// The parts of a workspace, in floats; `near` and `added` hold a state for each segment.
struct Workspace {
  float *near, *added, *kept, *bonus;
  Workspace(void* base, const Wkv6Shape& shape, int segments) {
    const std::size_t rows = static_cast<std::size_t>(shape.B) * shape.H * segments;
    near = static_cast<float*>(base);
    added = near + (segments > 1 ? rows * shape.D * shape.D : 0);
    kept = added + (segments > 1 ? rows * shape.D * shape.D : 0);
    bonus = kept + (segments > 1 ? rows * shape.D : 0);
  }
};

template <typename Kernel, typename Arguments>
cudaError_t run(Kernel kernel, const Arguments& args, dim3 grid, int threads, std::size_t shared_bytes,
                cudaStream_t stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  LAUNCH(kernel, grid, threads, shared_bytes, stream, args);
  return cudaGetLastError();
}

cudaError_t scan(const float* start, const Workspace& work, const Wkv6Shape& shape, int segments, bool forward,
                 cudaStream_t stream) {
  constexpr int kThreads = 128;
  const long long elements = static_cast<long long>(shape.B) * shape.H * shape.D * shape.D;
  const auto blocks = static_cast<unsigned>((elements + kThreads - 1) / kThreads);
  LAUNCH(wkv6_scan_segments_kernel, blocks, kThreads, 0, stream, start, work.added, work.kept, work.near, shape.D,
         segments, forward, elements);
  return cudaGetLastError();
}

template <typename V, typename W, int kD>
cudaError_t forward(const Wkv6Shape& shape, int multiprocessors, ForwardArguments<V, W> args, void* workspace,
                    cudaStream_t stream) {
  using Is = Traits<V, W, kD>;
  const std::size_t shared_bytes = sizeof(ForwardShared<V, W, kD>);
  args.segments = segments_of(shape, multiprocessors);
  const dim3 grid(shape.B * shape.H, args.segments);
  if (args.segments > 1) {
    const Workspace work(workspace, shape, args.segments);
    ForwardArguments<V, W> survey = args;
    survey.final = work.added;
    survey.kept = work.kept;
    cudaError_t error = run(wkv6_forward_kernel<V, W, kD, true>, survey, grid, Is::kThreads, shared_bytes, stream);
    if (error == cudaSuccess) error = scan(args.initial, work, shape, args.segments, true, stream);
    if (error != cudaSuccess) return error;
    args.initial = work.near;
  }
  return run(wkv6_forward_kernel<V, W, kD, false>, args, grid, Is::kThreads, shared_bytes, stream);
}

template <typename V, typename W, int kD>
cudaError_t backward(const Wkv6Shape& shape, int multiprocessors, BackwardArguments<V, W> args, float* du,
                     void* workspace, cudaStream_t stream) {
  using Is = Traits<V, W, kD>;
  const std::size_t shared_bytes = sizeof(BackwardShared<V, W, kD>);
  args.segments = segments_of(shape, multiprocessors);
  const Workspace work(workspace, shape, args.segments);
  const dim3 grid(shape.B * shape.H, args.segments);
  if (args.segments > 1) {
    BackwardArguments<V, W> survey = args;
    survey.dinitial = work.added;
    survey.kept = work.kept;
    cudaError_t error = run(wkv6_backward_kernel<V, W, kD, true>, survey, grid, Is::kThreads, shared_bytes, stream);
    if (error == cudaSuccess) error = scan(args.dfinal, work, shape, args.segments, false, stream);
    if (error != cudaSuccess) return error;
    args.dfinal = work.near;
  }
  args.du = work.bonus;
  const cudaError_t error =
      run(wkv6_backward_kernel<V, W, kD, false>, args, grid, Is::kThreads, shared_bytes, stream);
  if (error != cudaSuccess) return error;
  LAUNCH(wkv6_sum_bonus_kernel, shape.H, kBonusThreads, kBonusThreads * sizeof(float), stream, work.bonus, du, shape.B,
         shape.H, args.segments, kD);
  return cudaGetLastError();
}

// Calls `work` with a value of the type of the values, one of the decays, and the head size.
template <typename Work>
cudaError_t dispatch(const Wkv6Shape& shape, Work work) {
  const auto with_size = [&](auto values, auto decay) {
    if (shape.D == 64) return work(values, decay, std::integral_constant<int, 64>());
    if (shape.D == 32) return work(values, decay, std::integral_constant<int, 32>());
    return cudaErrorInvalidValue;
  };
  const auto with_decay = [&](auto values) {
    if (shape.decay == Dtype::fp32) return with_size(values, float());
    if (shape.decay == shape.values) return with_size(values, values);
    return cudaErrorInvalidValue;
  };
  if (shape.B < 1 || shape.T < 1 || shape.H < 1) return cudaErrorInvalidValue;
  switch (shape.values) {
    case Dtype::fp32:
      return with_size(float(), float());
    case Dtype::bf16:
      return with_decay(bf16());
    case Dtype::fp16:
      return with_decay(fp16());
  }
  return cudaErrorInvalidValue;
}

}  // namespace

Wkv6Sizes wkv6_sizes(const Wkv6Shape& shape, int multiprocessors) {
  const std::size_t planes = shape.values == Dtype::bf16 ? 1 : 2;
  const std::size_t rows = static_cast<std::size_t>(shape.B) * shape.H, chunks = chunks_of(shape);
  const std::size_t segments = segments_of(shape, multiprocessors), D = shape.D;
  const std::size_t states = segments > 1 ? rows * segments * (2 * D * D + D) * sizeof(float) : 0;
  return {rows * chunks * planes * D * D * sizeof(bf16), rows * chunks * kChunk * kChunk * sizeof(float), states,
          states + rows * segments * D * sizeof(float)};
}

cudaError_t wkv6_forward(const Wkv6Shape& shape, int multiprocessors, const void* r, const void* k, const void* v,
                         const void* log_w, const float* u, const float* initial, void* y, float* final,
                         void* checkpoints, float* scores, void* workspace, cudaStream_t stream) {
  return dispatch(shape, [&](auto values, auto decay, auto size) {
    using V = decltype(values);
    using W = decltype(decay);
    const ForwardArguments<V, W> args{shape.T,
                                      shape.H,
                                      1,
                                      static_cast<const V*>(r),
                                      static_cast<const V*>(k),
                                      static_cast<const V*>(v),
                                      static_cast<const W*>(log_w),
                                      u,
                                      initial,
                                      static_cast<V*>(y),
                                      final,
                                      nullptr,
                                      static_cast<bf16*>(checkpoints),
                                      scores};
    return forward<V, W, decltype(size)::value>(shape, multiprocessors, args, workspace, stream);
  });
}

cudaError_t wkv6_backward(const Wkv6Shape& shape, int multiprocessors, const void* r, const void* k, const void* v,
                          const void* log_w, const float* u, const void* checkpoints, const float* scores,
                          const void* dy, const float* dfinal, void* dr, void* dk, void* dv, void* dlog_w, float* du,
                          float* dinitial, void* workspace, cudaStream_t stream) {
  return dispatch(shape, [&](auto values, auto decay, auto size) {
    using V = decltype(values);
    using W = decltype(decay);
    const BackwardArguments<V, W> args{shape.T,
                                       shape.H,
                                       1,
                                       static_cast<const V*>(r),
                                       static_cast<const V*>(k),
                                       static_cast<const V*>(v),
                                       static_cast<const W*>(log_w),
                                       u,
                                       static_cast<const bf16*>(checkpoints),
                                       scores,
                                       static_cast<const V*>(dy),
                                       dfinal,
                                       static_cast<V*>(dr),
                                       static_cast<V*>(dk),
                                       static_cast<V*>(dv),
                                       static_cast<W*>(dlog_w),
                                       nullptr,
                                       dinitial,
                                       nullptr};
    return backward<V, W, decltype(size)::value>(shape, multiprocessors, args, du, workspace, stream);
  });
}

}  // namespace groundthink
