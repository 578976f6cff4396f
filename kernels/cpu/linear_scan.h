// One head of a linear recurrence with a matrix state, forward and backward, a chunk of positions at a time:
//
//     S_t = diag(w_t) S_{t-1} + k_t v_t^T            S [K, V]
//     y_t = S_{t-1}^T r_t   (kReadUpdated false: wkv6)     y_t = S_t^T r_t   (kReadUpdated true: SSD)
//
// With G_t the gradient of S_t (kReadUpdated: including what y_t sends), going backwards from G_T = dS_T:
//
//     dr_t = S dy_t    dk_t = G_t v_t    dv_t = G_t^T k_t    dw_t = rowsum(G_t * S_{t-1})    G_{t-1} = diag(w_t) G_t
//
// A tile of the state stays in registers over the whole chunk. Forward tiles are rows of S, so that y is summed lane by
// lane; backward tiles are rows of S^T, so that three of the four gradients are. Rows and lanes are padded with zeros.
// Nothing here depends on the number of threads: a head is one task, and every sum has one fixed order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

#include "vectors.h"

namespace groundthink {

// Positions between two checkpoints of the backward pass: their states are recomputed and held in the L1 cache.
constexpr int64_t kChunk = 16;
// Rows of a tile: with four vectors a row they fill half of the 32 vector registers of AVX-512.
constexpr int64_t kRows = 4;
inline int64_t round_up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// Zero-filled scratch memory aligned for vectors.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : size_(size), data_(new (std::align_val_t(kVectorBytes)) T[size]) { zero(); }
  T* operator+(int64_t offset) { return data_.get() + offset; }
  const T* operator+(int64_t offset) const { return data_.get() + offset; }
  T& operator[](int64_t index) { return data_.get()[index]; }
  void zero() { std::fill_n(data_.get(), size_, T(0)); }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete[](data, std::align_val_t(kVectorBytes)); }
  };
  int64_t size_;
  std::unique_ptr<T[], Free> data_;
};

// Lane blocks of 4, 2 and 1 vectors that together cover `lanes`; calls visit(width, offset).
template <typename T, typename Visit>
inline void for_lane_blocks(int64_t lanes, Visit visit) {
  int64_t at = 0;
  for (; lanes - at >= 4 * kLanes<T>; at += 4 * kLanes<T>) visit(std::integral_constant<int, 4>(), at);
  for (; lanes - at >= 2 * kLanes<T>; at += 2 * kLanes<T>) visit(std::integral_constant<int, 2>(), at);
  for (; lanes - at >= kLanes<T>; at += kLanes<T>) visit(std::integral_constant<int, 1>(), at);
}

// A matrix tile of kRows rows and W vectors, held in registers: for that, every loop over it is unrolled by name, as the
// optimiser on its own leaves some of them rolled and the tile in memory (measured: the backward pass takes 1.6x longer).
template <typename T, int W>
struct Tile {
  Vector<T> at[kRows][W];

  void load(const T* matrix, int64_t stride) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < kRows; i++)
#pragma GCC unroll 4
      for (int c = 0; c < W; c++) at[i][c] = vector_at(matrix + i * stride + c * kLanes<T>);
  }
  void store(T* matrix, int64_t stride) const {
#pragma GCC unroll 4
    for (int64_t i = 0; i < kRows; i++)
#pragma GCC unroll 4
      for (int c = 0; c < W; c++) vector_at(matrix + i * stride + c * kLanes<T>) = at[i][c];
  }
};

// The scan of one head, a chunk at a time. The caller fills the inputs of a chunk, calls, and reads the results.
template <typename T, bool kReadUpdated>
struct LinearScan {
  const int64_t K, V;
  const int64_t key_stride, value_stride;  // K and V rounded up to whole vectors

  Buffer<T> r, k, w, dr, dk, dw;  // [kChunk, key_stride]
  Buffer<T> v, y, dy, dv;         // [kChunk, value_stride]

  LinearScan(int64_t keys, int64_t values)
      : K(keys), V(values), key_stride(round_up(keys, kLanes<T>)), value_stride(round_up(values, kLanes<T>)),
        r(kChunk * key_stride), k(kChunk * key_stride), w(kChunk * key_stride), dr(kChunk * key_stride),
        dk(kChunk * key_stride), dw(kChunk * key_stride), v(kChunk * value_stride), y(kChunk * value_stride),
        dy(kChunk * value_stride), dv(kChunk * value_stride) {}

  int64_t state_size() const { return key_stride * value_stride; }

  // Adds to y what `steps` positions read and moves state_KV [key_stride, value_stride] past them.
  void forward(int64_t steps, T* state_KV) {
    for_lane_blocks<T>(value_stride, [&](auto width, int64_t lane) {
      for (int64_t row = 0; row < K; row += kRows) forward_tile<width()>(steps, row, lane, state_KV);
    });
  }

  // Moves the transposed state_VK [value_stride, key_stride] past `steps` positions.
  void advance(int64_t steps, T* state_VK) {
    for_lane_blocks<T>(key_stride, [&](auto width, int64_t lane) {
      for (int64_t row = 0; row < V; row += kRows) {
        Tile<T, width()> state;
        state.load(state_VK + row * key_stride + lane, key_stride);
        for (int64_t t = 0; t < steps; t++) step(state, t, row, lane);
        state.store(state_VK + row * key_stride + lane, key_stride);
      }
    });
  }

  // Adds to dr, dk, dw and dv the gradients of `steps` positions that start from state_VK, and moves grad_VK, the
  // gradient of the state after them, to before them. dy holds the gradient of y.
  void backward(int64_t steps, const T* state_VK, T* grad_VK) {
    for_lane_blocks<T>(key_stride, [&](auto width, int64_t lane) {
      for (int64_t row = 0; row < V; row += kRows) backward_tile<width()>(steps, row, lane, state_VK, grad_VK);
    });
  }

 private:
  template <int W>
  void forward_tile(int64_t steps, int64_t row, int64_t lane, T* state_KV) {
    Tile<T, W> state;
    state.load(state_KV + row * value_stride + lane, value_stride);
    for (int64_t t = 0; t < steps; t++) {
      const T *r_t = r + t * key_stride + row, *k_t = k + t * key_stride + row, *w_t = w + t * key_stride + row;
#pragma GCC unroll 4
      for (int c = 0; c < W; c++) {
        const Vector<T> v_t = vector_at(v + t * value_stride + lane + c * kLanes<T>);
        Vector<T>& out = vector_at(y + t * value_stride + lane + c * kLanes<T>);
        Vector<T> y_t = out;
#pragma GCC unroll 4
        for (int64_t i = 0; i < kRows; i++) {
          Vector<T>& s = state.at[i][c];
          if constexpr (!kReadUpdated) y_t += r_t[i] * s;
          s = s * w_t[i] + k_t[i] * v_t;
          if constexpr (kReadUpdated) y_t += r_t[i] * s;
        }
        out = y_t;
      }
    }
    state.store(state_KV + row * value_stride + lane, value_stride);
  }

  template <int W>
  void step(Tile<T, W>& state, int64_t t, int64_t row, int64_t lane) {
    const T* v_t = v + t * value_stride + row;
#pragma GCC unroll 4
    for (int c = 0; c < W; c++) {
      const Vector<T> w_t = vector_at(w + t * key_stride + lane + c * kLanes<T>);
      const Vector<T> k_t = vector_at(k + t * key_stride + lane + c * kLanes<T>);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kRows; i++) state.at[i][c] = state.at[i][c] * w_t + k_t * v_t[i];
    }
  }

  template <int W>
  void backward_tile(int64_t steps, int64_t row, int64_t lane, const T* state_VK, T* grad_VK) {
    Tile<T, W> states[kChunk + 1];  // before every position, and after the last
    Tile<T, W> tile;
    tile.load(state_VK + row * key_stride + lane, key_stride);
    states[0] = tile;
    for (int64_t t = 0; t < steps; t++) {
      step(tile, t, row, lane);
      states[t + 1] = tile;
    }
    tile.load(grad_VK + row * key_stride + lane, key_stride);
    for (int64_t t = steps - 1; t >= 0; t--) backward_step(tile, states + t, t, row, lane);
    tile.store(grad_VK + row * key_stride + lane, key_stride);
  }

  template <int W>
  void backward_step(Tile<T, W>& grad, const Tile<T, W>* states, int64_t t, int64_t row, int64_t lane) {
    const T *v_t = v + t * value_stride + row, *dy_t = dy + t * value_stride + row;
    Vector<T> dv_t[kRows] = {};
#pragma GCC unroll 4
    for (int c = 0; c < W; c++) {
      const int64_t at = t * key_stride + lane + c * kLanes<T>;
      const Vector<T> r_t = vector_at(r + at), k_t = vector_at(k + at), w_t = vector_at(w + at);
      Vector<T> dr_t = vector_at(dr + at), dk_t = vector_at(dk + at), dw_t = vector_at(dw + at);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kRows; i++) {
        const Vector<T> s = states[0].at[i][c], read = states[kReadUpdated ? 1 : 0].at[i][c];
        Vector<T> g = grad.at[i][c];
        if constexpr (kReadUpdated) g += r_t * dy_t[i];
        dr_t += read * dy_t[i];
        dk_t += g * v_t[i];
        dw_t += g * s;
        dv_t[i] += k_t * g;
        grad.at[i][c] = kReadUpdated ? g * w_t : g * w_t + r_t * dy_t[i];
      }
      vector_at(dr + at) = dr_t;
      vector_at(dk + at) = dk_t;
      vector_at(dw + at) = dw_t;
    }
    T* out = dv + t * value_stride + row;
#pragma GCC unroll 4
    for (int64_t i = 0; i < kRows; i++) out[i] += sum_of_lanes<T>(dv_t[i]);
  }
};

// Rows of `size` numbers, `stride` apart in memory, to rows `padded` apart in a buffer, and back.
template <typename T>
inline void pack(Buffer<T>& buffer, int64_t padded, const T* rows, int64_t stride, int64_t size, int64_t count) {
  for (int64_t t = 0; t < count; t++) std::copy_n(rows + t * stride, size, buffer + t * padded);
}
template <typename T>
inline void unpack(const Buffer<T>& buffer, int64_t padded, T* rows, int64_t stride, int64_t size, int64_t count) {
  for (int64_t t = 0; t < count; t++) std::copy_n(buffer + t * padded, size, rows + t * stride);
}

// to[j, i] = from[i, j] for i < rows, j < columns.
template <typename T>
inline void transpose(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows, int64_t columns) {
  for (int64_t j = 0; j < columns; j++)
    for (int64_t i = 0; i < rows; i++) to[j * to_stride + i] = from[i * from_stride + j];
}

}  // namespace groundthink
