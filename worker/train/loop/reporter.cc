#include "worker/train/loop/reporter.h"

#include <cmath>
#include <system_error>

namespace lemo::train {

void Reporter::Phase(const std::string& name, const std::string& detail) {
  lemo::v1::RunEvent event;
  event.mutable_phase()->set_name(name);
  event.mutable_phase()->set_detail(detail);
  Emit(std::move(event));
}

void Reporter::Warning(const std::string& message, const std::string& field) {
  lemo::v1::RunEvent event;
  event.mutable_warning()->set_message(message);
  event.mutable_warning()->set_field(field);
  Emit(std::move(event));
}

void Reporter::Eval(int64_t step, const EvalResult& result, bool best) {
  lemo::v1::RunEvent event;
  lemo::v1::EvalEvent* eval = event.mutable_eval();
  eval->set_step(static_cast<int32_t>(step));
  eval->set_loss(result.Loss());
  eval->set_perplexity(std::exp(result.Loss()));
  eval->set_token_accuracy(static_cast<double>(result.sums.correct) /
                           static_cast<double>(result.sums.labelled));
  eval->set_labelled_tokens(result.sums.labelled);
  eval->set_seconds(result.seconds);
  eval->set_best(best);
  if (result.sparse && result.sparse->labelled > 0) {
    eval->set_sparse_loss(result.sparse->Mean());
    eval->set_sparse_perplexity(std::exp(result.sparse->Mean()));
  }
  Emit(std::move(event));
}

void Reporter::Checkpoint(int64_t step, const std::filesystem::path& path, double seconds,
                          const std::string& reason) {
  lemo::v1::RunEvent event;
  lemo::v1::CheckpointEvent* checkpoint = event.mutable_checkpoint();
  checkpoint->set_step(static_cast<int32_t>(step));
  checkpoint->set_path(path.string());
  int64_t bytes = 0;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(path, ignored)) {
    if (entry.is_regular_file()) bytes += static_cast<int64_t>(entry.file_size(ignored));
  }
  checkpoint->set_bytes(bytes);
  checkpoint->set_seconds(seconds);
  checkpoint->set_reason(reason);
  Emit(std::move(event));
}

}  // namespace lemo::train
