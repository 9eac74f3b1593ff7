// Reads what a compilation starts from, and holds it against the pair.
#include <filesystem>

#include "compiler/compile.h"
#include "runtime/model/identity.h"
#include "support/file.h"
#include "support/hash.h"

namespace ds {
namespace {

/// The last part of a path; a trailing slash does not count.
std::string base_name(const std::string& path) {
  std::filesystem::path p(path);
  if (!p.has_filename()) p = p.parent_path();
  return p.filename().string();
}

/// A file's place in the provenance: role, name without folders, hash of its bytes.
Result<InputFile> input_file(std::string role, const std::string& path) {
  DS_ASSIGN(std::string text, read_text_file(path));
  return InputFile{std::move(role), base_name(path), sha256_hex(text)};
}

/// Before what belongs to the pair is called another pair's: the same two, the other way round.
Status check_not_swapped(std::string_view option, const std::string& path, const std::string& sender,
                         const std::string& receiver, const ModelPair& pair) {
  if (names_model(sender, pair.sender) || !names_model(sender, pair.receiver) ||
      !names_model(receiver, pair.sender)) {
    return ok_status();
  }
  return error(Code::kMismatch,
               "{} '{}' is of '{}' as the sender and '{}' as the receiver: --sender and --receiver are the "
               "other way round; swap them, or run ds-profile for this direction",
               option, path, pair.receiver.name, pair.sender.name);
}

Status read_maps(const std::string& path, const Shape& shape, CompileInputs& in) {
  DS_ASSIGN(MapSet maps, MapSet::read(path));
  DS_TRY(check_not_swapped("--maps", path, maps.sender_fingerprint, maps.receiver_fingerprint, in.pair));
  DS_TRY(maps.check_pair(path, in.pair.sender, in.pair.receiver, shape.layers, shape.d_model));
  DS_ASSIGN(std::string bytes, read_text_file(path, INT64_MAX));
  in.maps_identity = {base_name(path), maps.fingerprint()};
  in.maps = std::move(maps);
  in.files.push_back({"maps", in.maps_identity.name, sha256_hex(bytes)});
  return ok_status();
}

}  // namespace

Result<CompileInputs> read_inputs(const CompileFiles& files, bool plain_without_maps) {
  CompileInputs in;
  DS_ASSIGN(in.pair, read_pair(files.sender, files.receiver, files.open, files.identify));
  in.max_model_len = files.open.max_model_len;
  in.files.push_back({"sender", base_name(files.sender), in.pair.sender.fingerprint});
  in.files.push_back({"receiver", base_name(files.receiver), in.pair.receiver.fingerprint});
  const Shape shape = in.pair.config.shape();
  if (files.quality) {
    DS_ASSIGN(in.quality, Quality::read(*files.quality));
    DS_TRY(check_not_swapped("--quality", *files.quality, in.quality->sender_fingerprint,
                             in.quality->receiver_fingerprint, in.pair));
    DS_TRY(in.quality->check_pair(*files.quality, names_of_model(in.pair.sender),
                                  names_of_model(in.pair.receiver), shape.layers));
    DS_ASSIGN(InputFile file, input_file("quality", *files.quality));
    in.files.push_back(std::move(file));
  }
  if (files.machine) {
    DS_ASSIGN(in.machine, MachineModel::read(*files.machine));
    DS_TRY(in.machine->check_shape(*files.machine, shape));
    DS_ASSIGN(InputFile file, input_file("machine", *files.machine));
    in.files.push_back(std::move(file));
  }
  if (files.maps) {
    Status status = read_maps(*files.maps, shape, in);
    if (!status.ok() && !plain_without_maps) return status;
    if (!status.ok()) in.maps_fault = status.message();
  }
  return in;
}

}  // namespace ds
