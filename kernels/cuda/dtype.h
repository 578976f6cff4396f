// How a launcher is told the type of its numbers.
#pragma once

namespace groundthink {

enum class Dtype : int { fp32 = 0, bf16 = 1, fp16 = 2 };

}  // namespace groundthink
