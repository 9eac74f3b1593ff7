// quality.json: how well the receiver answers over each cache that a plan could give it. Written by
// ds-profile, read by ds-compile (what a plan promises) and by the gate of the runtime (what a request should
// look like). Schema: plans/quality.md.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "plans/alignment.h"
#include "plans/way.h"
#include "support/status.h"

namespace ds {

inline constexpr int64_t kQualityVersion = 5;

/// A mean and its standard error. Questions about one context are not independent, so errors are those of
/// means over contexts. NaN: not measured.
struct Mean {
  double value = 0, standard_error = 0;
};

struct WayScore {
  Way way;
  int64_t items = 0, contexts = 0;  // scored; fewer than the profile's where racing dropped the way
  bool dropped = false;             // by racing: shown, never chosen
  Mean score;                       // points, 0 to 100: the average over the tasks
  Mean loss;                        // points: the full prefill's score less this one, paired by context
  Mean exact;                       // exact matches, points
  Mean divergence;  // nats per token of the reference answer: KL(full prefill || this), at temperature 1
  std::vector<Mean> tasks;  // points by task, in the order of Quality::tasks
  // What the gate compares a request with: sorted samples of the first token's distribution. Empty: not kept.
  std::vector<double> entropy;  // nats
  std::vector<double> margin;   // probability of the first less that of the second
};

/// A data set.
struct QualityTask {
  std::string name, metric;  // metric: by its name in the profiler ("qa_f1")
  int64_t items = 0, contexts = 0;
};

/// How a choice made on some data does on other data.
struct Selection {
  std::string chosen_on, scored_on;  // "half", "other half"; a task; "pair NAME" for another pair's profile
  int64_t layers = 0;                // recomputed
  std::string group;                 // "7-11"; empty where many splits were averaged
  double chosen_score = 0;           // of the choice, where it was made
  Mean other_score;                  // of the choice, where it was not
  double best_score = 0;             // the best of that size there
};

/// One question with the answers of several ways, for people.
struct Example {
  std::string task, question;
  std::vector<std::string> references;
  struct Answer {
    std::string way, text;
    double score = 0;
  };
  std::vector<Answer> answers;
};

struct Quality {
  int64_t version = kQualityVersion;
  std::string sender_name, sender_fingerprint, receiver_name, receiver_fingerprint;
  int64_t layers = 0;
  std::string metric;  // of all tasks; "average" where they differ
  std::string dtype;
  int64_t granularity = 1, seed = 0;
  int64_t items = 0, contexts = 0;
  struct Input {
    std::string name, sha256;
    bool operator==(const Input&) const = default;
  };
  std::vector<Input> data;  // as read, in order
  Input prompt_template;
  std::vector<QualityTask> tasks;
  double receiver_score = 0;    // with the receiver's own full prefill
  double full_reuse_score = 0;  // nothing recomputed
  std::vector<WayScore> ways;
  std::vector<std::string> pareto;  // names of groups: the best of its size, better than all smaller ones
  std::vector<std::string> pareto_aligned;  // the same of groups and restored layers with maps of the pair
  MapsIdentity maps;                        // what aligned ways were scored with
  std::vector<double> k_deviation;          // sorted samples by context; see runtime/core/gate.h
  std::vector<Selection> selections;
  std::vector<Example> examples;
  nlohmann::ordered_json cost;  // counts of work, for people; may be null

  /// Is the divergence of any way but the full prefill known?
  bool has_divergences() const;
  /// nullptr: it was not scored, or racing dropped it.
  const WayScore* find(const Way& way) const;
  /// Points that a group costs (below 0 by chance). NaN: it was not measured. The empty group is full reuse,
  /// all layers are the full prefill, which costs nothing by definition.
  Mean loss(const LayerRange& group) const;
  /// What the true loss exceeds with probability 1 - confidence only: one-sided Student's t over contexts;
  /// NaN where the loss is not known or rests on one context.
  double loss_bound(const WayScore& way, double confidence) const;

  /// The same of the divergence.
  double divergence_bound(const WayScore& way, double confidence) const;

  /// Versions 1 to 4. Errors: kNotFound, kCorrupt, kUnsupported (a newer version), kInvalidArgument; each
  /// names file and field.
  static Result<Quality> read(const std::string& path);
  nlohmann::ordered_json to_json() const;
  /// The same as a file's text: a line for each way, task, selection and example.
  std::string to_text() const;
  /// kMismatch where the profile is not of this pair: says which field, found and expected. `sender`,
  /// `receiver`: the fingerprints that each may be named by, the first for the message (names_of_model()).
  /// `whose`: where the pair comes from, as the message puts it before "sender" and "receiver".
  Status check_pair(const std::string& path, const std::vector<std::string>& sender,
                    const std::vector<std::string>& receiver, int64_t layers,
                    std::string_view whose = "--") const;
};

/// As a profile holds it: six significant digits. Whatever is compared with a profile's samples is rounded
/// like them first.
double profile_precision(double x);

}  // namespace ds
