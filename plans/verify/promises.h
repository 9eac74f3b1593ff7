// Rule 5 of plans/README.md, as far as it is about numbers that stand by themselves. The plan's verifier and
// the dialect `plan` read it here.
#pragma once

#include <string>

#include "plans/plan.h"

namespace ds {

/// What is wrong, as the end of a sentence whose subject is the variant ("promises a TTFT of -1 ns; expected
/// 0 or more"); "": nothing.
std::string fault_of(const Promise& promise);
std::string fault_of_regret(double regret);
/// The same; the subject's "has an alternative with" stands in front.
std::string fault_of(const Alternative& alternative);

}  // namespace ds
