// Which model an identity names.
#pragma once

#include <string>

#include "plans/plan.h"

namespace ds {

/// ModelIdentity::fingerprint of its other fields.
std::string identity_fingerprint(const std::string& config, const std::string& weights,
                                 const std::string& tokenizer);

/// Whether `model` has the config and the weights of the model that `named` was made of (a plan's sender or
/// receiver). Their files of tokenizers may differ: K and V come of ids, and entries are found by the ids of
/// a request, so that a text which another tokenizer reads otherwise is a miss of itself.
bool same_model(const ModelIdentity& named, const ModelIdentity& model);

}  // namespace ds
