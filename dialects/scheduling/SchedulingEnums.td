// Enumerations of `scheduling`, under the numbers of compiler/scheduling/problem.h.
#ifndef DROIDSPEAK_SCHEDULING_ENUMS
#define DROIDSPEAK_SCHEDULING_ENUMS

include "mlir/IR/EnumAttr.td"

class Scheduling_EnumAttr<string name, string summary, list<I32EnumAttrCase> cases> : I32EnumAttr<name, summary, cases> {
  let cppNamespace = "::ds::scheduling";
}

def Scheduling_ObjectiveAttr : Scheduling_EnumAttr<"Objective", "what a problem minimises", [
  I32EnumAttrCase<"makespan", 0>, I32EnumAttrCase<"sum", 1>]>;

def Scheduling_ProofAttr : Scheduling_EnumAttr<"Proof", "how an optimum was proven", [
  I32EnumAttrCase<"bound", 1>, I32EnumAttrCase<"search", 2>]>;

#endif
