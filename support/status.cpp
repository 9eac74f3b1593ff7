#include "support/status.h"

namespace ds {

std::string_view code_name(Code code) {
  switch (code) {
#define DS_X(name, text, exit) \
  case Code::name:             \
    return text;
    DS_STATUS_CODES(DS_X)
#undef DS_X
  }
  return "unknown code";
}

int exit_code(Code code) {
  switch (code) {
#define DS_X(name, text, exit) \
  case Code::name:             \
    return exit;
    DS_STATUS_CODES(DS_X)
#undef DS_X
  }
  return 1;
}

}  // namespace ds
