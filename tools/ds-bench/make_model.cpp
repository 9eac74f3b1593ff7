// ds-bench make-model: a Hugging Face folder of a given shape with random weights, for what reads folders.
#include <filesystem>
#include <memory>

#include "runtime/model/checkpoint.h"
#include "runtime/model/safetensors.h"
#include "support/file.h"
#include "support/json.h"
#include "tools/ds-bench/bench.h"

namespace ds {
namespace {

struct MakeModelOptions {
  std::string shape = "llama-1b", folder;
  uint64_t seed = 1;
};

/// config.json of one of preset_config()'s shapes.
nlohmann::ordered_json config_json(const ModelConfig& c) {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
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
          {"rope_scaling",
           {{"rope_type", "llama3"},
            {"factor", c.rope.factor},
            {"low_freq_factor", c.rope.low_freq_factor},
            {"high_freq_factor", c.rope.high_freq_factor},
            {"original_max_position_embeddings", c.rope.original_max_positions}}},
          {"tie_word_embeddings", c.tied_embeddings},
          {"torch_dtype", "bfloat16"},
          {"eos_token_id", c.eos_token_ids}};
}

Status make_model(const MakeModelOptions& o) {
  DS_ASSIGN(ModelConfig config, preset_config(o.shape));
  DS_ASSIGN(Checkpoint checkpoint, Checkpoint::random(config, o.seed));
  std::error_code failed;
  std::filesystem::create_directories(o.folder, failed);
  if (failed) return error(Code::kIo, "cannot create the folder '{}': {}", o.folder, failed.message());
  std::vector<NamedTensor> tensors;
  for (const TensorSpec& spec : required_tensors(config)) {
    DS_ASSIGN(TensorView view, checkpoint.tensor(spec.name));
    tensors.push_back({spec.name, view.dtype, view.shape, view.data});
  }
  DS_TRY(write_safetensors(o.folder + "/model.safetensors", tensors));
  return write_file_atomically(o.folder + "/config.json", config_json(config).dump(2) + "\n");
}

}  // namespace

Bench add_make_model(CLI::App& app) {
  auto o = std::make_shared<MakeModelOptions>();
  CLI::App* cmd = app.add_subcommand("make-model", "write a model folder with random weights, no tokenizer");
  cmd->add_option("--shape", o->shape, "llama-1b, llama-8b or llama-8b:LAYERS")->capture_default_str();
  cmd->add_option("--seed", o->seed, "of the weights")->capture_default_str();
  cmd->add_option("-o,--output", o->folder, "folder to write")->required();
  return [o] { return make_model(*o); };
}

}  // namespace ds
