// A made-up finished run, the same every time, for tests of the report.
#pragma once

#include <cmath>
#include <string>

#include "worker/train/report/report.h"
#include "worker/train/spec/spec.h"

namespace lemo::testing {

inline constexpr double kSampleStart = 1767225600;  // 2026-01-01 00:00:00 UTC

// Hands out event after event, a stated time apart.
class SampleClock {
 public:
  lemo::v1::RunEvent After(double seconds) {
    now_ += seconds;
    lemo::v1::RunEvent event;
    event.set_sequence(++sequence_);
    event.set_unix_seconds(now_);
    return event;
  }

 private:
  double now_ = kSampleStart;
  int64_t sequence_ = 0;
};

inline lemo::v1::StepEvent SampleStep(int step, int steps) {
  lemo::v1::StepEvent out;
  out.set_step(step);
  out.set_steps(steps);
  // Exact in binary, so that no libm decides what the golden file holds.
  out.set_loss(2.75 + 8.0 / (16 + step) + (step % 3) / 64.0);
  out.set_learning_rate(step <= 8 ? step / 8192.0 : (steps - step + 1) / 65536.0);
  out.set_grad_norm(0.5 + (step % 5) / 16.0);
  out.set_tokens(8192);
  out.set_labelled_tokens(8188);
  out.set_seconds(0.5);
  out.set_tokens_per_second(16384);
  out.set_peak_bytes(432013312);
  out.set_eta_seconds(0.5 * (steps - step));
  out.set_epoch(step / 32.0);
  return out;
}

// Of a model of 4 layers: the first computes all rows, one drops some in its MLP too.
inline lemo::v1::TokenSparsity SampleSparsity(int step) {
  lemo::v1::TokenSparsity out;
  for (const double share : {1.0, 0.5, 0.375, 0.5}) out.add_attention_kept(share);
  for (const double share : {1.0, 0.5, 0.625, 0.5}) out.add_mlp_kept(share);
  out.set_never_kept(0.25);
  out.set_loss_kept(0.75);
  out.set_bad_blocks(step == 30 ? 2 : 0);
  out.set_selection_seconds(0.0078125);
  if (step % 10 == 0) {
    out.add_recall(0.5 + step / 128.0);
    out.add_recall_layers(1 + step / 10 % 3);
  }
  return out;
}

// 8 blocks of 64 rows but one, in two documents.
inline lemo::v1::SelectionEvent SampleSelection(int step) {
  using std::string_literals::operator""s;
  lemo::v1::SelectionEvent out;
  out.set_step(step);
  for (const int row : {0, 64, 128, 192, 208, 272, 336, 400, 464}) out.add_block_starts(row);
  for (const int row : {0, 208, 464}) out.add_document_starts(row);
  const std::string half = step % 2 ? "\1\0\1\0\1\1\0\0"s : "\1\1\0\0\1\0\0\1"s;
  for (const std::string& mask : {std::string(8, 1), half, "\1\0\0\0\1\1\0\0"s, half}) {
    out.add_attention(mask);
  }
  for (const std::string& mask : {""s, ""s, "\1\1\0\1\1\0\1\0"s, ""s}) out.add_mlp(mask);
  return out;
}

inline lemo::v1::EvalEvent SampleEval(int step, double loss, double perplexity, bool best) {
  lemo::v1::EvalEvent out;
  out.set_step(step);
  out.set_loss(loss);
  out.set_perplexity(perplexity);
  out.set_token_accuracy(step == 0 ? 0.375 : 0.40625);
  out.set_labelled_tokens(20471);
  out.set_seconds(1.25);
  out.set_best(best);
  return out;
}

inline lemo::train::ReportFacts SampleFacts() {
  lemo::train::ReportFacts facts;
  Violations violations;
  facts.spec = lemo::train::ParseRunSpec(R"({
      "model": {"path": "examples/models/novelist-3m"},
      "data": {"train": [{"path": "examples/data/almayer-train.txt"}],
               "eval": [{"path": "examples/data/almayer-eval.txt"}],
               "max_length": 2048, "packing": true},
      "tuner": {"lora": {"rank": 8, "alpha": 16}},
      "train": {"steps": 40, "batch_sequences": 4, "learning_rate": 1e-3, "warmup_steps": 8},
      "eval": {"every_steps": 20}, "device": "cpu",
      "output": {"dir": "out/almayer"}})",
                                         "sample", &violations);
  lemo::train::FillDefaults(&facts.spec);
  facts.family = "llama";
  facts.architecture = "LlamaForCausalLM";
  facts.parameters = 2752000;
  facts.trainable_parameters = 65536;
  facts.trainable_tensors = {"model.layers.0.self_attn.q_proj.lora_A.weight",
                             "model.layers.0.self_attn.q_proj.lora_B.weight"};
  facts.device = "cpu (2 threads)";
  facts.compute_type = "float32";
  facts.data = {{.role = "train",
                 .path = "examples/data/almayer-train.txt",
                 .format = "book",
                 .sha256 = "0f3a5c77b1e2d4986a0f3a5c77b1e2d4986a0f3a5c77b1e2d4986a0f3a5c77b1",
                 .bytes = 312345,
                 .rows = 1,
                 .sequences = 52,
                 .tokens = 105812,
                 .labelled_tokens = 105760,
                 .split_rows = 1},
                {.role = "eval",
                 .path = "examples/data/almayer-eval.txt",
                 .format = "book",
                 .sha256 = "9d1c0b5e3f7a2846c9d1c0b5e3f7a2846c9d1c0b5e3f7a2846c9d1c0b5e3f7a2",
                 .bytes = 60234,
                 .rows = 1,
                 .sequences = 10,
                 .tokens = 20481,
                 .labelled_tokens = 20471,
                 .split_rows = 1}};
  facts.template_sha256 = "5be1a7f0c2d34e6988aa5be1a7f0c2d34e6988aa5be1a7f0c2d34e6988aa5be1";
  facts.tokenizer_sha256 = "77e0d2c49b8f1a6355cc77e0d2c49b8f1a6355cc77e0d2c49b8f1a6355cc77e0";
  facts.versions = {{"lemo", "0.1.0"}, {"torch", "2.11.0"}, {"compiler", "gcc 12.2"}};
  return facts;
}

// Adds the events of steps `first` to `last` of 40, with the evaluations that belong to them.
inline void AddSampleSteps(int first, int last, SampleClock* clock,
                           lemo::train::RunReport* report) {
  for (int step = first; step <= last; ++step) {
    auto event = clock->After(0.5);
    *event.mutable_step() = SampleStep(step, 40);
    report->Add(event);
    if (step % 20 == 0) {
      event = clock->After(1.25);
      *event.mutable_eval() = step == 20 ? SampleEval(20, 2.984375, 19.77414, true)
                                         : SampleEval(40, 2.890625, 18.00456, true);
      report->Add(event);
    }
  }
}

inline void AddSamplePhase(const std::string& name, double seconds, SampleClock* clock,
                           lemo::train::RunReport* report) {
  auto event = clock->After(seconds);
  event.mutable_phase()->set_name(name);
  report->Add(event);
}

inline void AddSampleStart(SampleClock* clock, lemo::train::RunReport* report) {
  report->SetFacts(SampleFacts());
  AddSamplePhase("validate", 0, clock, report);
  AddSamplePhase("load", 0.25, clock, report);
  AddSamplePhase("tokenize", 1.5, clock, report);
  AddSamplePhase("train", 2, clock, report);
  auto event = clock->After(1.25);
  *event.mutable_eval() = SampleEval(0, 3.25, 25.79034, false);
  report->Add(event);
}

inline void AddSampleEnd(SampleClock* clock, lemo::train::RunReport* report) {
  auto event = clock->After(0.25);
  auto* checkpoint = event.mutable_checkpoint();
  checkpoint->set_step(40);
  checkpoint->set_path("out/almayer/checkpoints/step-00000040");
  checkpoint->set_bytes(790528);
  checkpoint->set_seconds(0.25);
  checkpoint->set_reason("interval");
  report->Add(event);
  event = clock->After(0);
  event.mutable_warning()->set_field("data.eval[0]");
  event.mutable_warning()->set_message("1 sequence is shorter than 16 tokens");
  report->Add(event);
  AddSamplePhase("publish", 0.5, clock, report);
  AddSamplePhase("done", 1.75, clock, report);
  event = clock->After(0);
  auto* result = event.mutable_result();
  result->set_train_loss(2.90625);
  result->set_eval_loss_before(3.25);
  result->set_eval_loss(2.890625);
  result->set_perplexity_before(25.79034);
  result->set_perplexity(18.00456);
  result->set_steps(40);
  result->set_tokens(327680);
  result->set_labelled_tokens(327520);
  result->set_tokens_per_second(16384);
  result->set_seconds(32.5);
  auto* peak = result->mutable_peak_bytes();
  peak->set_weights(11008000);
  peak->set_trainable(1048576);
  peak->set_saved_activations(301989888);
  peak->set_transient(96468992);
  peak->set_loss(33554432);
  peak->set_total(432013312);
  result->set_adapter_dir("out/almayer/adapter");
  result->set_publish_max_logit_difference(1.9073486328125e-06);
  result->set_report("out/almayer/report.html");
  report->Add(event);
}

// The same run with rows dropped from step 9 on.
inline void AddSparseSteps(int first, int last, SampleClock* clock,
                           lemo::train::RunReport* report) {
  for (int step = first; step <= last; ++step) {
    auto event = clock->After(0.5);
    *event.mutable_step() = SampleStep(step, 40);
    if (step > 8) *event.mutable_step()->mutable_sparsity() = SampleSparsity(step);
    report->Add(event);
    if (step <= 8 || step % 5 != 0) continue;
    event = clock->After(0);
    *event.mutable_selection() = SampleSelection(step);
    report->Add(event);
    event.mutable_selection()->set_micro_batch(1);
    report->Add(event);
  }
}

inline lemo::train::RunReport SparseSampleReport() {
  SampleClock clock;
  lemo::train::RunReport report;
  AddSampleStart(&clock, &report);
  AddSparseSteps(1, 40, &clock, &report);
  auto event = clock.After(1.25);
  *event.mutable_eval() = SampleEval(40, 2.890625, 18.00456, true);
  event.mutable_eval()->set_sparse_loss(3);
  event.mutable_eval()->set_sparse_perplexity(20.08554);
  report.Add(event);
  AddSampleEnd(&clock, &report);
  return report;
}

inline lemo::train::RunReport SampleReport() {
  SampleClock clock;
  lemo::train::RunReport report;
  AddSampleStart(&clock, &report);
  AddSampleSteps(1, 40, &clock, &report);
  AddSampleEnd(&clock, &report);
  return report;
}

}  // namespace lemo::testing
