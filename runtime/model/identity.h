// Which model an identity names.
#pragma once

#include <string>
#include <vector>

#include "plans/plan.h"

namespace ds {

/// ModelIdentity::fingerprint of its other fields.
std::string identity_fingerprint(const std::string& config, const std::string& weights,
                                 const std::string& tokenizer);

/// Whether `model` has the config and the weights of the model that `named` was made of (a plan's sender or
/// receiver). Their files of tokenizers may differ: K and V come of ids, and entries are found by the ids of
/// a request, so that a text which another tokenizer reads otherwise is a miss of itself.
bool same_model(const ModelIdentity& named, const ModelIdentity& model);

/// What profiles and maps name a model by: its config and its weights, by the same rule. (Whether sender and
/// receiver read a text alike is asked of the tokenizers themselves, where they are at hand:
/// check_same_ids().)
std::string model_fingerprint(const ModelIdentity& model);
/// All that profiles and maps may name it by: model_fingerprint() first, then ModelIdentity::fingerprint,
/// which files of before have.
std::vector<std::string> names_of_model(const ModelIdentity& model);
bool names_model(const std::string& fingerprint, const ModelIdentity& model);

}  // namespace ds
