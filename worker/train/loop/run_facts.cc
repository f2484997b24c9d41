#include "worker/train/loop/run_facts.h"

#include <torch/version.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/train/loop/peak_bytes.h"
#include "worker/train/loop/publisher.h"

namespace lemo::train {
namespace {

void AddDataFacts(const Dataset& data, const std::string& role, ReportFacts* facts) {
  // Counts are kept for the whole list of files.
  const DataCounts& counts = data.counts();
  ReportDataFile file;
  file.role = role;
  for (int64_t i = 0; i < counts.files; ++i) {
    absl::StrAppend(&file.path, i == 0 ? "" : ", ", data.path(i));
  }
  file.rows = counts.rows;
  file.sequences = counts.documents;
  file.tokens = counts.tokens;
  file.labelled_tokens = counts.labels;
  file.truncated_rows = counts.rows_truncated;
  file.split_rows = counts.rows_split;
  file.dropped_rows = counts.rows_dropped;
  facts->data.push_back(std::move(file));
}

}  // namespace

lemo::v1::PeakBytes PeakByCategory(const Engine& engine, at::Device device) {
  lemo::v1::PeakBytes peak = PeakBytesOf(device);
  if (!device.is_cpu()) {
    // What was sized beforehand is known without the allocator.
    peak.set_weights(engine.weights().OwnedBytes());
    peak.set_saved_activations(engine.tape().arena_bytes());
    peak.set_total(peak.total() +
                   engine.weights().MappedBytes());  // which is none of the allocator's
  }
  peak.set_base(engine.weights().MappedBytes());
  return peak;
}

ReportFacts MakeFacts(const Inputs& inputs, Engine& engine, const Compute& compute) {
  ReportFacts facts;
  facts.spec = inputs.spec;
  facts.family = inputs.config.family;
  facts.architecture = inputs.config.architecture;
  facts.parameters = engine.parameters();
  facts.trainable_parameters = CountParameters(engine.trainables());
  for (const Trainable& trainable : engine.trainables()) {
    facts.trainable_tensors.push_back(trainable.name);
  }
  facts.device = compute.device.str();
  facts.compute_type = TypeName(compute.type);
  AddDataFacts(*inputs.train, "train", &facts);
  if (inputs.eval) AddDataFacts(*inputs.eval, "eval", &facts);
  facts.tokenizer_sha256 = inputs.text->tokenizer_hash();
  if (inputs.text->chat_template()) facts.template_sha256 = inputs.text->chat_template()->hash();
  facts.versions = {{"lemo", kLemoVersion}, {"torch", TORCH_VERSION}, {"compiler", __VERSION__}};
  return facts;
}

}  // namespace lemo::train
