#include "runtime/model/identity.h"

#include <fmt/format.h>

#include "support/hash.h"

namespace ds {

std::string identity_fingerprint(const std::string& config, const std::string& weights,
                                 const std::string& tokenizer) {
  return sha256_hex(fmt::format("config {}\nweights {}\ntokenizer {}\n", config, weights, tokenizer));
}

bool same_model(const ModelIdentity& named, const ModelIdentity& model) {
  return named.fingerprint == model.fingerprint ||
         named.fingerprint == identity_fingerprint(model.config, model.weights, named.tokenizer);
}

std::string model_fingerprint(const ModelIdentity& model) {
  return identity_fingerprint(model.config, model.weights, "");
}

std::vector<std::string> names_of_model(const ModelIdentity& model) {
  return {model_fingerprint(model), model.fingerprint};
}

bool names_model(const std::string& fingerprint, const ModelIdentity& model) {
  return fingerprint == model.fingerprint || fingerprint == model_fingerprint(model);
}

}  // namespace ds
