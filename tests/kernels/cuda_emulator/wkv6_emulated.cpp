// The launchers of wkv6.cu with a C interface, compiled for the emulator.
#include "wkv6.cu"

namespace gt = groundthink;

extern "C" {

void sizes(int B, int T, int H, int D, int values, int decay, int multiprocessors, unsigned long long* out) {
  const gt::Wkv6Shape shape{B, T, H, D, gt::Dtype(values), gt::Dtype(decay)};
  const gt::Wkv6Sizes sizes = gt::wkv6_sizes(shape, multiprocessors);
  out[0] = sizes.checkpoints, out[1] = sizes.scores, out[2] = sizes.forward_workspace;
  out[3] = sizes.backward_workspace;
}

int forward(int B, int T, int H, int D, int values, int decay, int multiprocessors, const void* r, const void* k,
            const void* v, const void* log_w, const float* u, const float* initial, void* y, float* final,
            void* checkpoints, float* scores, void* workspace) {
  const gt::Wkv6Shape shape{B, T, H, D, gt::Dtype(values), gt::Dtype(decay)};
  return gt::wkv6_forward(shape, multiprocessors, r, k, v, log_w, u, initial, y, final, checkpoints, scores, workspace,
                          nullptr);
}

int backward(int B, int T, int H, int D, int values, int decay, int multiprocessors, const void* r, const void* k,
             const void* v, const void* log_w, const float* u, const void* checkpoints, const float* scores,
             const void* dy, const float* dfinal, void* dr, void* dk, void* dv, void* dlog_w, float* du,
             float* dinitial, void* workspace) {
  const gt::Wkv6Shape shape{B, T, H, D, gt::Dtype(values), gt::Dtype(decay)};
  return gt::wkv6_backward(shape, multiprocessors, r, k, v, log_w, u, checkpoints, scores, dy, dfinal, dr, dk, dv,
                           dlog_w, du, dinitial, workspace, nullptr);
}
}
