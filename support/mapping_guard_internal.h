// Mappings of files whose missing pages become zeros instead of a SIGBUS (support/file.h, MappedFile).
#pragma once

#include <cstddef>

namespace ds::detail {

struct GuardedMapping;

/// From now on the handler knows these bytes, a read-only mapping. The first call sets the handler.
GuardedMapping* guard_mapping(void* data, size_t size);
/// Before they are unmapped.
void unguard_mapping(GuardedMapping* mapping);
/// Whether a page of it could not be read, and is zeros now.
bool mapping_torn(const GuardedMapping& mapping);

}  // namespace ds::detail
