// ds-bench: what the numbers of docs/numbers.md come from.
#include "tools/ds-bench/bench.h"

using namespace ds;

int main(int argc, char** argv) {
  CLI::App app{
      "Measure this machine: prefill and attention against the matrix products' speed, decoding against the "
      "memory's, ways to a first token beside one another, transfers beside compute, starts, and the "
      "compiler.",
      "ds-bench"};
  app.require_subcommand(1);
  const std::pair<const char*, Bench> benches[] = {{"attention", add_attention(app)},
#ifdef DS_HAVE_COMPILER
                                                   {"agents", add_agents(app)},
                                                   {"dead-store", add_dead_store(app)},
                                                   {"compile", add_compile(app)},
                                                   {"make-plans", add_make_plans(app)},
                                                   {"quality", add_quality(app)},
                                                   {"http", add_http(app)},
                                                   {"serve", add_serve(app)},
                                                   {"sweep", add_sweep(app)},
#endif
                                                   {"decode", add_decode(app)},
                                                   {"kernels", add_kernels(app)},
                                                   {"plans", add_plans(app)},
                                                   {"load", add_load(app)},
                                                   {"make-model", add_make_model(app)},
                                                   {"overlap", add_overlap(app)},
                                                   {"prefill", add_prefill(app)},
                                                   {"store", add_store(app)},
                                                   {"ttft", add_ttft(app)}};
  app.footer(
      "Examples:\n"
      "  ds-bench prefill --shape llama-1b --lengths 512,2048,4096 --json prefill.json\n"
      "  ds-bench overlap --shape llama-1b:4 --rate 1GB/s --json -\n"
      "  ds-bench prefill --lengths 2048 --profile\n"
      "  ds-bench attention --shape llama-8b --lengths 512,2048,4096\n"
      "  ds-bench decode --shape llama-1b --context 1024 --batch 1,2,4,8,16,32 --json -\n"
      "  ds-bench kernels --shape llama-8b --backend cuda --json kernels.json\n"
      "  ds-bench plans --shape llama-8b --plans plans/ --store file:/dev/shm/ds --json plans.json\n"
      "  ds-bench store --store redis://127.0.0.1 --bytes 1GiB --json -\n"
      "  ds-bench ttft --receiver R/ --store file:cache --context c.txt --prompt 'Where?' --link-rate 20MB/s "
      "\\\n"
      "      --plan 'full reuse=reuse.dsplan' --plan plan=pair.dsplan\n"
#ifdef DS_HAVE_COMPILER
      "  ds-bench make-plans --shape llama-8b --machine machine.json --rates 10Gb/s,100Gb/s -o plans/\n"
      "  ds-bench compile --layers 80 --chunks 16 --json -\n"
      "  ds-bench quality --receiver R/ --sender S/ --quality quality.json --machine machine.json \\\n"
      "      --link-rates 20MB/s,100MB/s --data notes.jsonl -o quality-ttft.json --html page.html\n"
      "  ds-bench agents --turns 9 --json agents.json\n"
      "  ds-bench dead-store --context-length 1024 --repeats 5 --json -\n"
      "  ds-bench http --fleet fleet.json --clients 64 --knee-steps 6 --json http.json\n"
      "  ds-bench serve --receivers 3 --contexts 6 --questions 4 --json serve.json --html serve.html\n"
      "  ds-bench sweep --lengths 512,1024,2048 --budget-s 240 --json sweep.json --html sweep.html\n"
#endif
      "  ds-bench make-model --shape llama-1b -o /tmp/llama-1b\n"
      "  ds-bench load --model /tmp/llama-1b --repeats 5 --json load.json");
  return run_tool(app, argc, argv, [&]() -> Status {
    for (const auto& [name, bench] : benches)
      if (app.got_subcommand(name)) return bench();
    return ok_status();
  });
}
