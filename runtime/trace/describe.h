// Words for parts of a plan, shared by its listing, its explanation and its comparison.
#pragma once

#include <string>
#include <string_view>

#include "plans/plan.h"

namespace ds {

std::string tokens_range_text(const Variant& variant);  // "1 to 2,047", "2,048 and more", "any"
std::string rate_range_text(const Variant& variant);    // "20 MB/s to 1 GB/s", "any"
std::string loss_text(double loss);                     // "1.8", "not known"
/// "0.4 ± 0.3 points, at most 1 with 95 % confidence", as far as it is known.
std::string promised_loss_text(const Promise& promise);
/// "0.041 ± 0.003 nats per token, at most 0.05 with 95 % confidence"; "" where it is not known.
std::string promised_divergence_text(const Promise& promise);
std::string nats_text(double nats);                      // "0.041", "not known"
std::string waiting_range_text(const Variant& variant);  // other requests: "none", "1 to 3", "any"
std::string regret_text(double regret);                  // "3.1 %", "not known"
/// "2-5, 9": layers that are recomputed for every token; "none". Others behind them: "none (restore
/// 0-11)", "0 (select 15 % in 1-11)"; "3-6 aligned" where the sender's hidden states are mapped. Stairs stand
/// behind their band: "3-6 aligned, 5 of 8 chunks from the embeddings", "3-6, 2 of 8 chunks to the top".
std::string recomputed_text(const Variant& variant);
/// Whose measured loss is promised, and why for this variant, where some chunks get more than it says:
/// "recompute 3-6 aligned: what every token gets at least; the first 5 of 8 chunks are the receiver's own in
/// every layer". "not known" where the plan does not say.
std::string measured_text(const Variant& variant);
/// "load 0-5, recompute 6-11 from E aligned (full map, by the receiver)": layers upward; one part per run of
/// chunks that are alike, "chunks 0-3:
/// ...; chunks 4-7: ...". Layer 0 needs no E.
std::string tiling_text(const Variant& variant);
/// "aligned (full map, by the receiver)"; "" where cuts are plain.
std::string alignment_text(const Variant& variant);
/// What a sender publishes: "KV of every layer, E of layer 3, 7, E of layer 4 as mapped (full map)".
std::string published_text(const Plan& plan);
/// Which letters stand for which modes in pictures of the plane: "L loaded from the sender, R recomputed",
/// and the rarer modes where the variant has them.
std::string modes_text(const Variant& variant);
/// Characters, not bytes, of UTF-8 text.
size_t columns(std::string_view text);
/// Over the link, at the tuned length.
int64_t bytes_sent(const Plan& plan, const Variant& variant);

}  // namespace ds
