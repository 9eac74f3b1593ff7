// A sender whose rows are next to nothing, where only keys and names are looked at.
#pragma once

#include <string>

#include "plans/plan.h"

namespace ds {

const Shape kShape{.family = "llama",
                   .layers = 1,
                   .d_model = 8,
                   .ff = 16,
                   .heads = 1,
                   .kv_heads = 1,
                   .head_dim = 4,
                   .vocab = 32'000};
const std::string kSender(64, 'a');

}  // namespace ds
