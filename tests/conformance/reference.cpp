#include "tests/conformance/reference.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "runtime/model/safetensors.h"
#include "support/file.h"

namespace ds::conformance {
namespace {

void store(double value, DType dtype, std::byte* at) {
  auto f = static_cast<float>(value);
  if (dtype == DType::kF32) {
    std::memcpy(at, &f, 4);
  } else if (dtype == DType::kBF16) {
    uint16_t half = f32_to_bf16(f);
    std::memcpy(at, &half, 2);
  } else {
    auto half = static_cast<_Float16>(f);
    std::memcpy(at, &half, 2);
  }
}

double fetch(const std::byte* at, DType dtype) {
  if (dtype == DType::kF32) {
    float f;
    std::memcpy(&f, at, 4);
    return f;
  }
  uint16_t half;
  std::memcpy(&half, at, 2);
  return dtype == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

double rounded(double value, DType dtype) {
  std::byte bytes[4];
  store(value, dtype, bytes);
  return fetch(bytes, dtype);
}

/// w [out][in] . x
std::vector<double> multiply(const std::vector<double>& w, const std::vector<double>& x) {
  std::vector<double> y(w.size() / x.size());
  for (size_t o = 0; o < y.size(); ++o)
    for (size_t i = 0; i < x.size(); ++i) y[o] += w[o * x.size() + i] * x[i];
  return y;
}

/// y + bias, where there is one.
std::vector<double> add(std::vector<double> y, const std::vector<double>& bias) {
  for (size_t i = 0; i < bias.size(); ++i) y[i] += bias[i];
  return y;
}

nlohmann::json config_json(const ModelConfig& c, DType stored) {
  static const char* const kArchitectures[] = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM",
                                               "Qwen3ForCausalLM"};
  static const char* const kTypes[] = {"llama", "mistral", "qwen2", "qwen3"};
  auto family = static_cast<size_t>(c.family);
  nlohmann::json j = {{"architectures", {kArchitectures[family]}},
                      {"model_type", kTypes[family]},
                      {"hidden_act", "silu"},
                      {"hidden_size", c.d_model},
                      {"intermediate_size", c.ff},
                      {"num_hidden_layers", c.layers},
                      {"num_attention_heads", c.heads},
                      {"num_key_value_heads", c.kv_heads},
                      {"head_dim", c.head_dim},
                      {"vocab_size", c.vocab},
                      {"max_position_embeddings", c.max_positions},
                      {"rms_norm_eps", c.rms_norm_eps},
                      {"rope_theta", c.rope.theta},
                      {"tie_word_embeddings", c.tied_embeddings},
                      {"sliding_window", nullptr},
                      {"torch_dtype", stored == DType::kF32    ? "float32"
                                      : stored == DType::kBF16 ? "bfloat16"
                                                               : "float16"}};
  if (c.rope.type == RopeConfig::Type::kLlama3)
    j["rope_scaling"] = {{"rope_type", "llama3"},
                         {"factor", c.rope.factor},
                         {"low_freq_factor", c.rope.low_freq_factor},
                         {"high_freq_factor", c.rope.high_freq_factor},
                         {"original_max_position_embeddings", c.rope.original_max_positions}};
  if (c.rope.type == RopeConfig::Type::kLinear)
    j["rope_scaling"] = {{"rope_type", "linear"}, {"factor", c.rope.factor}};
  if (c.rope.type == RopeConfig::Type::kYarn)
    j["rope_scaling"] = {{"rope_type", "yarn"},
                         {"factor", c.rope.factor},
                         {"beta_fast", c.rope.beta_fast},
                         {"beta_slow", c.rope.beta_slow},
                         {"truncate", c.rope.truncate},
                         {"attention_factor", c.rope.attention_factor},
                         {"original_max_position_embeddings", c.rope.original_max_positions}};
  j["attention_bias"] = c.o_bias;
  j["mlp_bias"] = c.mlp_bias;
  return j;
}

}  // namespace

double Random::uniform() {
  state_ = state_ * 6364136223846793005u + 1442695040888963407u;
  return (static_cast<double>(state_ >> 11) + 0.5) * 0x1p-53;
}
double Random::normal() {
  return std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307179586 * uniform());
}
int64_t Random::below(int64_t n) { return static_cast<int64_t>(uniform() * static_cast<double>(n)); }

Result<Checkpoint> make_checkpoint(const ModelConfig& config, DType stored, uint64_t seed) {
  static std::atomic<int> count{0};
  namespace fs = std::filesystem;
  fs::path folder =
      fs::temp_directory_path() / fmt::format("droidspeak-conformance-{}-{}", getpid(), count++);
  fs::create_directories(folder);
  struct Cleanup {
    fs::path folder;
    ~Cleanup() {
      std::error_code ignored;
      fs::remove_all(folder, ignored);
    }
  } cleanup{folder};  // what is mapped stays readable

  Random random(seed);
  std::vector<std::vector<std::byte>> data;
  std::vector<NamedTensor> tensors;
  for (const TensorSpec& spec : required_tensors(config)) {
    int64_t count_elements = 1;
    for (int64_t n : spec.shape) count_elements *= n;
    double mean = 0, deviation = 1;
    if (spec.name.ends_with("norm.weight"))
      mean = 1, deviation = 0.2;
    else if (spec.name.ends_with("bias"))
      mean = 0.5;
    else if (spec.name != "model.embed_tokens.weight")
      deviation = 1 / std::sqrt(static_cast<double>(spec.shape.back()));
    auto& bytes = data.emplace_back(static_cast<size_t>(count_elements * dtype_size(stored)));
    for (int64_t i = 0; i < count_elements; ++i)
      store(mean + deviation * random.normal(), stored, bytes.data() + i * dtype_size(stored));
    tensors.push_back({spec.name, stored, spec.shape, {}});
  }
  for (size_t i = 0; i < tensors.size(); ++i) tensors[i].data = data[i];
  DS_TRY(write_safetensors((folder / "model.safetensors").string(), tensors));
  DS_TRY(write_file_atomically((folder / "config.json").string(), config_json(config, stored).dump(1)));
  return Checkpoint::open(folder.string());
}

std::vector<double> to_doubles(const std::byte* data, int64_t count, DType dtype) {
  std::vector<double> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    values[static_cast<size_t>(i)] = fetch(data + i * dtype_size(dtype), dtype);
  return values;
}

void from_doubles(const std::vector<double>& values, DType dtype, std::byte* data) {
  for (size_t i = 0; i < values.size(); ++i)
    store(values[i], dtype, data + i * static_cast<size_t>(dtype_size(dtype)));
}

AlignmentMap make_map(MapForm form, int64_t width, int64_t rank, uint64_t seed) {
  Random random(seed);
  auto normal = [&](int64_t count, double deviation) {
    std::vector<float> v(static_cast<size_t>(count));
    for (float& x : v) x = static_cast<float>(deviation * random.normal());
    return v;
  };
  const double wide = 1 / std::sqrt(static_cast<double>(width));
  AlignmentMap map;
  map.layer = 1;
  map.form = form;
  if (form == MapForm::kFull) {
    map.weight = normal(width * width, wide);
  } else {
    map.scale = normal(width, 0.5);
  }
  if (form == MapForm::kLowRank) {
    map.rank = rank;
    map.up = normal(width * rank, 1 / std::sqrt(static_cast<double>(rank)));
    map.down = normal(rank * width, wide);
  }
  map.bias = normal(width, 0.5);
  return map;
}

std::vector<double> align(const AlignmentMap& map, const std::vector<double>& x, DType dtype) {
  auto matrix = [&](const std::vector<float>& v) {
    std::vector<double> w(v.size());
    for (size_t i = 0; i < v.size(); ++i) w[i] = rounded(v[i], dtype);
    return w;
  };
  std::vector<double> y = x;
  auto add = [&](const std::vector<double>& more) {
    for (size_t i = 0; i < y.size(); ++i) y[i] += more[i];
  };
  if (map.form == MapForm::kFull) add(multiply(matrix(map.weight), x));
  if (map.form == MapForm::kLowRank) add(multiply(matrix(map.up), multiply(matrix(map.down), x)));
  for (size_t i = 0; i < y.size(); ++i) {
    if (map.form != MapForm::kFull) y[i] += static_cast<double>(map.scale[i]) * x[i];
    y[i] += map.bias[i];
  }
  return y;
}

Result<Reference> Reference::load(const Checkpoint& checkpoint, DType dtype) {
  Reference r;
  const ModelConfig& c = r.config_ = checkpoint.config();
  r.frequencies_ = c.rope.inverse_frequencies(c.head_dim);
  Status status;
  auto take = [&](const std::string& name, bool round) {
    auto view = checkpoint.tensor(name);
    if (!view.ok()) {
      status = view.status();
      return std::vector<double>();
    }
    auto values = to_doubles(view->data.data(), view->elements(), view->dtype);
    if (round)
      for (double& v : values) v = rounded(v, dtype);
    return values;
  };
  r.embedding_ = take("model.embed_tokens.weight", true);
  r.final_norm_ = take("model.norm.weight", false);
  r.head_ = c.tied_embeddings ? r.embedding_ : take("lm_head.weight", true);
  for (int64_t l = 0; l < c.layers; ++l) {
    std::string p = fmt::format("model.layers.{}.", l), a = p + "self_attn.";
    Layer layer;
    layer.q = take(a + "q_proj.weight", true);
    layer.k = take(a + "k_proj.weight", true);
    layer.v = take(a + "v_proj.weight", true);
    layer.o = take(a + "o_proj.weight", true);
    layer.gate = take(p + "mlp.gate_proj.weight", true);
    layer.up = take(p + "mlp.up_proj.weight", true);
    layer.down = take(p + "mlp.down_proj.weight", true);
    layer.input_norm = take(p + "input_layernorm.weight", false);
    layer.post_norm = take(p + "post_attention_layernorm.weight", false);
    if (c.qkv_bias) {
      layer.q_bias = take(a + "q_proj.bias", false);
      layer.k_bias = take(a + "k_proj.bias", false);
      layer.v_bias = take(a + "v_proj.bias", false);
    }
    if (c.o_bias) layer.o_bias = take(a + "o_proj.bias", false);
    if (c.mlp_bias) {
      layer.gate_bias = take(p + "mlp.gate_proj.bias", false);
      layer.up_bias = take(p + "mlp.up_proj.bias", false);
      layer.down_bias = take(p + "mlp.down_proj.bias", false);
    }
    if (c.qk_norm) {
      layer.q_norm = take(a + "q_norm.weight", false);
      layer.k_norm = take(a + "k_norm.weight", false);
    }
    r.layers_.push_back(std::move(layer));
  }
  if (!status.ok()) return status;
  return r;
}

std::vector<double> Reference::rms_norm(const double* x, const std::vector<double>& weight) const {
  double squares = 0;
  for (size_t i = 0; i < weight.size(); ++i) squares += x[i] * x[i];
  double factor = 1 / std::sqrt(squares / static_cast<double>(weight.size()) + config_.rms_norm_eps);
  std::vector<double> y(weight.size());
  for (size_t i = 0; i < weight.size(); ++i) y[i] = x[i] * factor * weight[i];
  return y;
}

std::vector<double> Reference::heads(const std::vector<double>& x, const std::vector<double>& w,
                                     const std::vector<double>& bias, const std::vector<double>& norm,
                                     int64_t count, int64_t position) const {
  std::vector<double> y = multiply(w, x);
  for (size_t i = 0; i < bias.size(); ++i) y[i] += bias[i];
  auto dim = static_cast<size_t>(config_.head_dim), half = dim / 2;
  for (size_t h = 0; h < static_cast<size_t>(count); ++h) {
    double* head = y.data() + h * dim;
    if (!norm.empty()) {
      auto normed = rms_norm(head, norm);
      std::copy(normed.begin(), normed.end(), head);
    }
    for (size_t i = 0; i < half; ++i) {
      double angle = static_cast<float>(position) * frequencies_[i];  // f32, as transformers
      double a = head[i] * config_.rope.attention_factor, b = head[half + i] * config_.rope.attention_factor;
      head[i] = a * std::cos(angle) - b * std::sin(angle);
      head[half + i] = b * std::cos(angle) + a * std::sin(angle);
    }
  }
  return y;
}

std::vector<double> Reference::attend(const std::vector<double>& q, const std::vector<double>& cache,
                                      int64_t position) const {
  auto dim = static_cast<size_t>(config_.head_dim), kv_heads = static_cast<size_t>(config_.kv_heads);
  size_t heads = static_cast<size_t>(config_.heads), row = 2 * kv_heads * dim;
  std::vector<double> out(heads * dim);
  for (size_t h = 0; h < heads; ++h) {
    size_t kv = h / (heads / kv_heads);
    std::vector<double> scores(static_cast<size_t>(position) + 1);
    double top = -1e300, total = 0;
    for (size_t t = 0; t < scores.size(); ++t) {
      for (size_t i = 0; i < dim; ++i) scores[t] += q[h * dim + i] * cache[t * row + kv * dim + i];
      scores[t] /= std::sqrt(static_cast<double>(dim));
      top = std::max(top, scores[t]);
    }
    for (double& s : scores) total += s = std::exp(s - top);
    for (size_t t = 0; t < scores.size(); ++t)
      for (size_t i = 0; i < dim; ++i)
        out[h * dim + i] += scores[t] / total * cache[t * row + (kv_heads + kv) * dim + i];
  }
  return out;
}

void Reference::layer(int64_t index, std::vector<double>& hidden, std::vector<double>& cache,
                      int64_t position, int64_t rows, int64_t query_rows) const {
  const Layer& l = layers_[static_cast<size_t>(index)];
  auto d = static_cast<size_t>(config_.d_model);
  auto row_size = static_cast<size_t>(config_.kv_row());
  for (int64_t r = 0; r < rows; ++r) {
    auto x = rms_norm(&hidden[static_cast<size_t>(r) * d], l.input_norm);
    auto k = heads(x, l.k, l.k_bias, l.k_norm, config_.kv_heads, position + r);
    auto v = multiply(l.v, x);
    for (size_t i = 0; i < l.v_bias.size(); ++i) v[i] += l.v_bias[i];
    auto at = cache.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(position + r) * row_size);
    std::copy(v.begin(), v.end(), std::copy(k.begin(), k.end(), at));
  }
  for (int64_t r = rows - query_rows; r < rows; ++r) {
    double* h = &hidden[static_cast<size_t>(r) * d];
    auto q = heads(rms_norm(h, l.input_norm), l.q, l.q_bias, l.q_norm, config_.heads, position + r);
    auto o = add(multiply(l.o, attend(q, cache, position + r)), l.o_bias);
    for (size_t i = 0; i < d; ++i) h[i] += o[i];
    auto x = rms_norm(h, l.post_norm);
    auto gate = add(multiply(l.gate, x), l.gate_bias), up = add(multiply(l.up, x), l.up_bias);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    auto down = add(multiply(l.down, gate), l.down_bias);
    for (size_t i = 0; i < d; ++i) h[i] += down[i];
  }
}

std::vector<double> Reference::embed(int32_t id) const {
  auto at = embedding_.begin() + static_cast<std::ptrdiff_t>(id * config_.d_model);
  return {at, at + static_cast<std::ptrdiff_t>(config_.d_model)};
}

std::vector<double> Reference::logits(const std::vector<double>& hidden) const {
  return multiply(head_, rms_norm(hidden.data(), final_norm_));
}

}  // namespace ds::conformance
