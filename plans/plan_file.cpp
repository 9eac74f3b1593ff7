#include "plans/plan_file.h"

#include <flatbuffers/flatbuffers.h>

#include <cmath>
#include <cstring>
#include <map>

#include "plans/plan_generated.h"
#include "plans/traits.h"
#include "support/file.h"

namespace ds {
namespace {

// The enums of the schema and of plan.h are the same numbers; casts rely on it. That the same number is the
// same thing, plans_test says, name by name.
template <typename A, typename B>
constexpr bool same(A a, B b) {
  return static_cast<int>(a) == static_cast<int>(b);
}
static_assert(same(fb::Payload::MAX, kPayloads - 1) && same(fb::SourceRule::MAX, kSourceRules - 1));
static_assert(same(fb::OpKind::MAX, kOpKinds - 1) && same(fb::Mode::MAX, kModes - 1));
static_assert(same(fb::StreamKind::MAX, StreamKind::kCompute) &&
              same(fb::BufferKind::MAX, BufferKind::kHidden));
static_assert(same(fb::Rows::MAX, Rows::kSelected) && same(fb::Queries::MAX, Queries::kLast));
static_assert(same(fb::MapForm::MAX, kMapForms - 1) && same(fb::MapSide::MAX, MapSide::kSender));

constexpr int64_t kMaxFileBytes = int64_t{1} << 30;
constexpr char kMagic[] = "DSPL";  // at bytes 4 to 7, as every FlatBuffers file has it

std::string escaped(std::span<const std::byte> bytes) {
  std::string text;
  for (std::byte b : bytes) {
    auto c = static_cast<unsigned char>(b);
    if (c == '\\' || c == '"') {
      text += '\\';
      text += static_cast<char>(c);
    } else if (c >= 0x20 && c < 0x7f) {
      text += static_cast<char>(c);
    } else {
      text += fmt::format("\\x{:02x}", c);
    }
  }
  return text;
}

template <typename To, typename From>
To convert(From value) {
  return static_cast<To>(static_cast<uint8_t>(value));
}

/// Up to version 4 each payload had a kind of its own.
void read_kind(fb::OpKind kind, Op& op) {
  const bool e = kind == fb::OpKind::TransferE, kv = kind == fb::OpKind::TransferKv;
  if (e || kv) op.payload = e ? Payload::kE : Payload::kKv;
  op.kind = e || kv ? OpKind::kTransfer : static_cast<OpKind>(kind);
}
fb::OpKind kind_before_5(const Op& op) {
  if (op.kind != OpKind::kTransfer) return static_cast<fb::OpKind>(op.kind);
  return op.payload == Payload::kE ? fb::OpKind::TransferE : fb::OpKind::TransferKv;
}

/// NaN (not known) is no good default in a file: it equals nothing, itself included. So it is -1 there.
double stored(double value) { return std::isnan(value) ? -1 : value; }
double known(double value) { return value == -1 ? kUnknown : value; }

/// FlatBuffers -> structs. Offsets may point several times at one string or vector, so that a small file
/// could unpack to a huge plan: no more is unpacked than an unshared file of kSharing times this size can
/// hold.
class Reader {
 public:
  Reader(const std::string& origin, size_t file_bytes)
      : origin_(origin), left_(kSharing * static_cast<int64_t>(file_bytes)) {}

  Result<Plan> plan(const fb::Plan& f) {
    Plan p;
    p.format_version = f.format_version();
    p.provenance.compiler_version = text(f.provenance()->compiler_version());
    p.provenance.flags = text(f.provenance()->flags());
    for (const fb::InputFile* input : *f.provenance()->inputs()) {
      p.provenance.inputs.push_back({text(input->role()), text(input->name()), text(input->sha256())});
    }
    p.sender = identity(*f.sender());
    p.receiver = identity(*f.receiver());
    p.shape = shape(*f.shape());
    p.dtype = text(f.dtype());
    for (const fb::Variant* v : *f.variants()) {
      p.variants.push_back(variant(*v));
      if (left_ < 0) break;
    }
    p.full_prefill = variant(*f.full_prefill());
    if (f.backend() != nullptr) p.backend = text(f.backend());
    p.shared_vocab = f.shared_vocab();
    if (f.sources() != nullptr) {
      for (const fb::Source* s : *f.sources()) {
        left_ -= 4;
        if (left_ < 0) break;
        p.sources.push_back({convert<SourceRule>(s->rule()), identity(*s->model()), shape(*s->shape())});
      }
    }
    if (f.maps() != nullptr) p.maps = {text(f.maps()->name()), text(f.maps()->fingerprint())};
    if (left_ < 0) {
      return error(
          Code::kCorrupt,
          "plan '{}' refers to the same bytes again and again: it would unpack to more than its own size; "
          "no version of ds-compile writes such a file, compile the plan again",
          origin_);
    }
    return p;
  }

 private:
  std::string text(const flatbuffers::String* s) {
    left_ -= s->size();
    return left_ < 0 ? std::string() : s->str();
  }
  ModelIdentity identity(const fb::ModelIdentity& m) {
    return {text(m.name()), text(m.fingerprint()), text(m.config()), text(m.weights()), text(m.tokenizer())};
  }
  Shape shape(const fb::Shape& s) {
    return {text(s.family()), s.layers(),   s.d_model(),  s.ff(),
            s.heads(),        s.kv_heads(), s.head_dim(), s.vocab()};
  }
  Variant variant(const fb::Variant& f) {
    Variant v;
    v.name = text(f.name());
    v.policy = text(f.policy());
    v.scheduler = text(f.scheduler());
    v.tokens_min = f.tokens_min();
    v.tokens_max = f.tokens_max();
    v.rate_min = f.rate_min();
    v.rate_max = f.rate_max();
    v.tuned_tokens = f.tuned_tokens();
    v.tuned_suffix = f.tuned_suffix();
    v.tuned_rate = f.tuned_rate();
    v.chunks = f.chunks();
    v.promise = {f.quality_loss(), f.promised_ttft_ns()};
    v.makespan_ns = f.makespan_ns();
    v.lower_bound_ns = f.lower_bound_ns();
    v.proven_optimal = f.proven_optimal();
    // Each element of these vectors is an offset of 4 bytes in the file (and a table, which the FlatBuffers
    // verifier has counted against its own limit).
    left_ -= 4 * (int64_t{f.tiles()->size()} + f.streams()->size() + f.buffers()->size() + f.ops()->size());
    if (left_ < 0) return v;
    for (const fb::Tile* t : *f.tiles()) {
      v.tiles.push_back({convert<Mode>(t->mode()), t->first_layer(), t->last_layer(), t->first_chunk(),
                         t->last_chunk(), t->cut()});
    }
    for (const fb::Stream* s : *f.streams()) v.streams.push_back({convert<StreamKind>(s->kind())});
    for (const fb::Buffer* b : *f.buffers()) {
      v.buffers.push_back({convert<BufferKind>(b->kind()), b->layer(), b->with_suffix(), b->with_context()});
    }
    v.ops.reserve(f.ops()->size());
    for (const fb::Op* o : *f.ops()) {
      Op& op = v.ops.emplace_back();
      op.payload = convert<Payload>(o->payload());
      op.source = o->source();
      read_kind(o->kind(), op);
      op.stream = o->stream();
      op.layer = o->layer();
      op.chunk = o->chunk();
      op.rows = convert<Rows>(o->rows());
      op.queries = convert<Queries>(o->queries());
      op.buffer = o->buffer();
      op.start_ns = o->start_ns();
      op.duration_ns = o->duration_ns();
      if (const auto* waits = o->waits()) {
        left_ -= 4 * int64_t{waits->size()};
        if (left_ < 0) return v;
        op.waits.assign(waits->begin(), waits->end());
      }
      op.last_chunk = o->last_chunk();
    }
    v.load_min = f.load_min();
    v.load_max = f.load_max();
    v.regret = f.regret();
    if (f.why() != nullptr) v.why = text(f.why());
    if (f.alternatives() != nullptr) {
      left_ -= 4 * int64_t{f.alternatives()->size()};
      if (left_ < 0) return v;
      for (const fb::Alternative* a : *f.alternatives())
        v.alternatives.push_back(
            {text(a->what()), a->quality_loss(), a->ttft_ns(), a->compute_ns(), known(a->divergence())});
    }
    if (f.way() != nullptr) v.way = text(f.way());
    v.promise.loss_stderr = known(f.loss_stderr());
    v.promise.confidence = f.confidence();
    v.promise.loss_bound = f.confidence() == 0 && f.loss_bound() == 0 ? kUnknown : f.loss_bound();
    v.select_share = f.select_share();
    v.map_form = convert<MapForm>(f.map_form());
    v.map_side = convert<MapSide>(f.map_side());
    v.live = f.live();
    v.promise.divergence = known(f.divergence());
    v.promise.divergence_stderr = known(f.divergence_stderr());
    v.promise.divergence_bound = known(f.divergence_bound());
    return v;
  }

  static constexpr int64_t kSharing = 4;  // equal texts and waits of one plan: a half more at most
  const std::string& origin_;
  int64_t left_;
};

using Builder = flatbuffers::FlatBufferBuilder;

/// Writes texts and lists of waits. From version 5 on equal ones stand in the file once, where they are short
/// enough that a reader cannot take that for an attack (Reader::kSharing): of what points at one, 36 bytes
/// and more are its own. Before, each is written where it is used, so that files keep their bytes.
class Packer {
 public:
  Packer(Builder& b, int32_t version) : b_(b), version_(version) {}

  bool before_5() const { return version_ < 5; }
  flatbuffers::Offset<flatbuffers::String> text(const std::string& s) {
    return before_5() || s.size() > kShort ? b_.CreateString(s) : b_.CreateSharedString(s);
  }
  flatbuffers::Offset<flatbuffers::Vector<int32_t>> waits(const std::vector<int32_t>& list) {
    if (list.empty()) return 0;
    if (before_5() || 4 * list.size() > kShort) return b_.CreateVector(list);
    auto [at, fresh] = waits_.try_emplace(list);
    if (fresh) at->second = b_.CreateVector(list);
    return at->second;
  }

 private:
  static constexpr size_t kShort = 100;  // bytes
  Builder& b_;
  int32_t version_;
  std::map<std::vector<int32_t>, flatbuffers::Offset<flatbuffers::Vector<int32_t>>> waits_;
};

flatbuffers::Offset<fb::Variant> pack(Builder& b, Packer& packer, const Variant& v) {
  std::vector<flatbuffers::Offset<fb::Tile>> tiles;
  for (const Tile& t : v.tiles) {
    tiles.push_back(fb::CreateTile(b, convert<fb::Mode>(t.mode), t.first_layer, t.last_layer, t.first_chunk,
                                   t.last_chunk, t.cut));
  }
  std::vector<flatbuffers::Offset<fb::Stream>> streams;
  for (const Stream& s : v.streams) streams.push_back(fb::CreateStream(b, convert<fb::StreamKind>(s.kind)));
  std::vector<flatbuffers::Offset<fb::Buffer>> buffers;
  for (const Buffer& u : v.buffers) {
    buffers.push_back(
        fb::CreateBuffer(b, convert<fb::BufferKind>(u.kind), u.layer, u.with_suffix, u.with_context));
  }
  std::vector<flatbuffers::Offset<fb::Op>> ops;
  ops.reserve(v.ops.size());
  for (const Op& o : v.ops) {
    auto waits = packer.waits(o.waits);
    const bool old = packer.before_5();
    ops.push_back(fb::CreateOp(b, old ? kind_before_5(o) : convert<fb::OpKind>(o.kind), o.stream, o.layer,
                               o.chunk, convert<fb::Rows>(o.rows), convert<fb::Queries>(o.queries), o.buffer,
                               o.start_ns, o.duration_ns, waits, o.last_chunk,
                               old ? fb::Payload::None : convert<fb::Payload>(o.payload), o.source));
  }
  // One statement each: the order of evaluation of arguments is the compiler's choice, and decides the bytes.
  auto name = packer.text(v.name);
  auto policy = packer.text(v.policy);
  auto scheduler = packer.text(v.scheduler);
  auto tile_vector = b.CreateVector(tiles);
  auto stream_vector = b.CreateVector(streams);
  auto buffer_vector = b.CreateVector(buffers);
  auto op_vector = b.CreateVector(ops);
  // Fields of later versions are left out where they say nothing, so that plans of earlier ones keep their
  // bytes.
  flatbuffers::Offset<flatbuffers::String> why;
  if (!v.why.empty()) why = packer.text(v.why);
  std::vector<flatbuffers::Offset<fb::Alternative>> alternatives;
  for (const Alternative& a : v.alternatives) {
    auto what = packer.text(a.what);
    alternatives.push_back(
        fb::CreateAlternative(b, what, a.quality_loss, a.ttft_ns, a.compute_ns, stored(a.divergence)));
  }
  flatbuffers::Offset<flatbuffers::Vector<flatbuffers::Offset<fb::Alternative>>> alternative_vector;
  if (!alternatives.empty()) alternative_vector = b.CreateVector(alternatives);
  flatbuffers::Offset<flatbuffers::String> way;
  if (!v.way.empty()) way = packer.text(v.way);
  bool no_bound = v.promise.confidence == 0 && std::isnan(v.promise.loss_bound);
  double bound = no_bound ? 0 : v.promise.loss_bound;
  return fb::CreateVariant(b, name, policy, scheduler, v.tokens_min, v.tokens_max, v.rate_min, v.rate_max,
                           v.tuned_tokens, v.tuned_suffix, v.tuned_rate, v.chunks, v.promise.quality_loss,
                           v.promise.ttft_ns, v.makespan_ns, v.lower_bound_ns, v.proven_optimal, tile_vector,
                           stream_vector, buffer_vector, op_vector, v.load_min, v.load_max, v.regret, why,
                           alternative_vector, way, stored(v.promise.loss_stderr), bound,
                           v.promise.confidence, v.select_share, convert<fb::MapForm>(v.map_form),
                           convert<fb::MapSide>(v.map_side), stored(v.promise.divergence),
                           stored(v.promise.divergence_stderr), stored(v.promise.divergence_bound), v.live);
}

flatbuffers::Offset<fb::ModelIdentity> pack(Builder& b, Packer& packer, const ModelIdentity& m) {
  auto name = packer.text(m.name);
  auto fingerprint = packer.text(m.fingerprint);
  auto config = packer.text(m.config);
  auto weights = packer.text(m.weights);
  auto tokenizer = packer.text(m.tokenizer);
  return fb::CreateModelIdentity(b, name, fingerprint, config, weights, tokenizer);
}

flatbuffers::Offset<fb::Shape> pack(Builder& b, Packer& packer, const Shape& s) {
  auto family = packer.text(s.family);
  return fb::CreateShape(b, family, s.layers, s.d_model, s.ff, s.heads, s.kv_heads, s.head_dim, s.vocab);
}

}  // namespace

std::string serialize_plan(const Plan& plan) {
  Builder b(64 * 1024);
  Packer packer(b, plan.format_version);
  std::vector<flatbuffers::Offset<fb::Variant>> variants;
  for (const Variant& v : plan.variants) variants.push_back(pack(b, packer, v));
  auto full_prefill = pack(b, packer, plan.full_prefill);
  auto variant_vector = b.CreateVector(variants);
  std::vector<flatbuffers::Offset<fb::InputFile>> inputs;
  for (const InputFile& i : plan.provenance.inputs) {
    auto role = packer.text(i.role);
    auto name = packer.text(i.name);
    auto sha256 = packer.text(i.sha256);
    inputs.push_back(fb::CreateInputFile(b, role, name, sha256));
  }
  auto input_vector = b.CreateVector(inputs);
  auto version = packer.text(plan.provenance.compiler_version);
  auto flags = packer.text(plan.provenance.flags);
  auto provenance = fb::CreateProvenance(b, version, flags, input_vector);
  auto sender = pack(b, packer, plan.sender);
  auto receiver = pack(b, packer, plan.receiver);
  auto shape = pack(b, packer, plan.shape);
  auto dtype = packer.text(plan.dtype);
  flatbuffers::Offset<fb::Maps> maps;
  if (plan.maps != MapsIdentity{}) {
    auto name = packer.text(plan.maps.name);
    auto fingerprint = packer.text(plan.maps.fingerprint);
    maps = fb::CreateMaps(b, name, fingerprint);
  }
  flatbuffers::Offset<flatbuffers::String> backend;
  if (!plan.backend.empty()) backend = packer.text(plan.backend);
  std::vector<flatbuffers::Offset<fb::Source>> sources;
  for (const Source& source : plan.sources) {
    auto whose = pack(b, packer, source.model);
    auto theirs = pack(b, packer, source.shape);
    sources.push_back(fb::CreateSource(b, convert<fb::SourceRule>(source.rule), whose, theirs));
  }
  flatbuffers::Offset<flatbuffers::Vector<flatbuffers::Offset<fb::Source>>> source_vector;
  if (!sources.empty()) source_vector = b.CreateVector(sources);
  fb::FinishPlanBuffer(
      b, fb::CreatePlan(b, plan.format_version, provenance, sender, receiver, shape, dtype, variant_vector,
                        full_prefill, maps, backend, plan.shared_vocab, source_vector));
  return {reinterpret_cast<const char*>(b.GetBufferPointer()), b.GetSize()};
}

Result<Plan> parse_plan(std::span<const std::byte> bytes, const std::string& origin) {
  if (bytes.empty()) {
    return error(Code::kCorrupt, "plan '{}' is empty; expected a .dsplan file, compile the plan again",
                 origin);
  }
  if (bytes.size() < 8) {
    return error(
        Code::kCorrupt,
        "plan '{}' is truncated: it has {} bytes (\"{}\"), a .dsplan file has at least 8; compile or copy it "
        "again",
        origin, bytes.size(), escaped(bytes));
  }
  if (std::memcmp(bytes.data() + 4, kMagic, 4) != 0) {
    return error(
        Code::kCorrupt,
        "'{}' is not a plan: found \"{}\" at bytes 4 to 7 of {} bytes, expected \"{}\"; give a .dsplan file "
        "written by ds-compile",
        origin, escaped(bytes.subspan(4, 4)), bytes.size(), kMagic);
  }
  if (static_cast<int64_t>(bytes.size()) > kMaxFileBytes) {
    return error(Code::kCorrupt, "plan '{}' has {} bytes, a plan has at most {}; compile it again", origin,
                 bytes.size(), kMaxFileBytes);
  }
  // The verifier checks alignment by address; a span from anywhere may not be aligned.
  std::vector<uint64_t> aligned;
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  if (reinterpret_cast<uintptr_t>(data) % alignof(uint64_t) != 0) {
    aligned.resize((bytes.size() + 7) / 8);
    std::memcpy(aligned.data(), bytes.data(), bytes.size());
    data = reinterpret_cast<const uint8_t*>(aligned.data());
  }
  // A table that is not shared takes 8 bytes and more: its entry in a vector or field, and itself.
  auto max_tables = static_cast<flatbuffers::uoffset_t>(bytes.size() / 8 + 1);
  flatbuffers::Verifier verifier(data, bytes.size(), /*max_depth=*/8, max_tables);
  if (!fb::VerifyPlanBuffer(verifier)) {
    return error(
        Code::kCorrupt,
        "plan '{}' ({} bytes) is truncated or damaged: an offset or size in it points outside the file, or a "
        "required field is absent; compile or copy it again",
        origin, bytes.size());
  }
  const fb::Plan& root = *fb::GetPlan(data);
  if (root.format_version() > kPlanFormatVersion) {
    return error(Code::kUnsupported,
                 "plan '{}' has format version {}, written by ds-compile {}; this program (droidspeak {}) "
                 "reads versions "
                 "1 to {}: update droidspeak here, or compile the plan with the older ds-compile",
                 origin, root.format_version(),
                 escaped(std::as_bytes(std::span(root.provenance()->compiler_version()->c_str(),
                                                 root.provenance()->compiler_version()->size()))),
                 DS_PLANS_VERSION, kPlanFormatVersion);
  }
  DS_ASSIGN(Plan plan, Reader(origin, bytes.size()).plan(root));
  DS_TRY(verify_plan(plan, origin));
  return plan;
}

Result<Plan> read_plan(const std::string& path) {
  Result<std::string> file = read_text_file(path, INT32_MAX);
  if (!file.ok()) return file.status().with_context("reading a plan");
  return parse_plan(std::as_bytes(std::span(file->data(), file->size())), path);
}

}  // namespace ds
