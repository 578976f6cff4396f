// cross_entropy.cu for the emulator, under names that Python can call.
#include "cross_entropy.cu"

extern "C" {

int forward(int values, int rows, int classes, const void* logits, const int64_t* targets, float* stats, float* losses,
            float* loss) {
  return groundthink::cross_entropy_forward(groundthink::Dtype(values), rows, classes, logits, targets, stats, losses,
                                            loss, nullptr);
}

int backward(int values, int rows, int classes, const void* logits, const int64_t* targets, const float* stats,
             const float* dloss, void* dlogits) {
  return groundthink::cross_entropy_backward(groundthink::Dtype(values), rows, classes, logits, targets, stats, dloss,
                                             dlogits, nullptr);
}

}  // extern "C"
