#include "runtime/engine/receiver.h"

#include "plans/full_prefill.h"
#include "runtime/core/runnable.h"
#include "runtime/core/session.h"
#include "runtime/model/identity.h"
#include "runtime/store/entry.h"

namespace ds {

Result<std::unique_ptr<Receiver>> Receiver::create(std::string name, DeviceModel& model,
                                                   const ModelIdentity& identity,
                                                   std::span<const ReceiverPlan> plans) {
  std::unique_ptr<Receiver> receiver(new Receiver(std::move(name), model, identity));
  const Shape shape = model.config().shape();
  const int64_t element = dtype_size(model.dtype());
  receiver->row_bytes_ = {shape.layers, shape.kv_row() * element, shape.e_row() * element};
  receiver->exact_ = full_prefill_plan(identity, shape, std::string(dtype_name(model.dtype())));
  for (const ReceiverPlan& given : plans) {
    const Plan& plan = *given.plan;
    Shape named = plan.shape;
    named.family = shape.family;  // the numbers decide
    if (!(named == shape) || !same_model(plan.receiver, identity))
      return error(Code::kMismatch,
                   "receiver '{}' (fingerprint {:.12}, {} layers, d_model {}): a plan for '{}' ({:.12}, {} "
                   "layers, d_model {}); compile one for this receiver",
                   receiver->name_, identity.fingerprint, shape.layers, shape.d_model, plan.receiver.name,
                   plan.receiver.fingerprint, plan.shape.layers, plan.shape.d_model);
    DS_TRY(check_runnable(plan).with_context(fmt::format("receiver '{}'", receiver->name_)));
    DS_TRY(check_maps(plan, given.maps).with_context(fmt::format("receiver '{}'", receiver->name_)));
    Loaded loaded{.plan = &plan, .own = std::make_shared<const Plan>(plan)};
    for (size_t form = 0; form < kMapForms; ++form)
      loaded.entry_maps[form] = ds::entry_map(plan.maps.fingerprint, static_cast<MapForm>(form));
    if (given.maps != nullptr) {
      DS_ASSIGN(loaded.maps, load_maps(model, plan, *given.maps));
    }
    receiver->plans_.push_back(std::move(loaded));
  }
  return receiver;
}

}  // namespace ds
