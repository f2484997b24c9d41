#include "worker/train/loop/evaluate_only.h"

#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/train/data/batches.h"
#include "worker/train/loop/device.h"
#include "worker/train/loop/engine.h"
#include "worker/train/loop/eval_rows.h"
#include "worker/train/loop/inputs.h"
#include "worker/train/loop/predictor_run.h"
#include "worker/train/loop/reporter.h"
#include "worker/train/loop/run_facts.h"
#include "worker/train/memory/counting_allocator.h"

namespace lemo::train {
namespace {

using lemo::v1::RunEvent;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

}  // namespace

absl::Status EvaluateOnly(const lemo::v1::RunSpec& spec, EventSink& sink, Violations* violations) {
  Reporter reporter(sink);
  reporter.Phase("validate");
  LEMO_ASSIGN_OR_RETURN(const Compute compute,
                        ChooseCompute(spec.device(), spec.model().compute_type()));
  Inputs inputs;
  inputs.spec = spec;
  OpenModel(&inputs, violations);
  LEMO_RETURN_IF_ERROR(violations->ToStatus());
  reporter.Phase("tokenize");
  LEMO_RETURN_IF_ERROR(OpenData(&inputs, ExistingCache(spec), /*want_train=*/false, violations));
  LEMO_RETURN_IF_ERROR(violations->ToStatus());
  if (compute.device.is_cpu()) SetMemoryLimit(spec.memory().budget_bytes());
  EvalBatches batches(&*inputs.eval, inputs.spec.train().micro_batch_tokens(),
                      inputs.spec.eval().max_sequences());
  if (spec.eval().sparse()) {
    const EmitEvent emit = [&reporter](RunEvent event) { reporter.Emit(std::move(event)); };
    LEMO_RETURN_IF_ERROR(ResolvePredictor(compute, /*may_train=*/false, emit, &inputs));
  } else {
    inputs.spec.clear_tokens();  // all rows: nothing ranks blocks
  }
  reporter.Phase("load", absl::StrCat(spec.model().path(), ", computing in ", compute.reason,
                                      " on ", compute.device.str()));
  LEMO_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                        Engine::Create(inputs.spec, inputs.config, compute, /*max_rows=*/0));
  reporter.Phase("evaluate");
  const bool rows = spec.eval().write_rows();
  const EvalResult eval = engine->Evaluate([&batches] { return batches.Next(); },
                                           {.sparse = spec.eval().sparse(), .rows = rows});
  if (rows) {
    const std::filesystem::path dir = spec.output().dir();
    std::error_code ignored;  // writing says what is wrong
    std::filesystem::create_directories(dir, ignored);
    LEMO_RETURN_IF_ERROR(InField("output.dir", WriteEvalRows(eval.rows, dir / kEvalRows)));
  }
  reporter.Eval(0, eval, false);
  RunEvent event;
  lemo::v1::ResultEvent* result = event.mutable_result();
  result->set_train_loss(kNan);
  result->set_eval_loss_before(eval.Loss());
  result->set_eval_loss(eval.Loss());
  result->set_perplexity_before(std::exp(eval.Loss()));
  result->set_perplexity(std::exp(eval.Loss()));
  result->set_labelled_tokens(eval.sums.labelled);
  result->set_seconds(eval.seconds);
  result->set_tokens_per_second(static_cast<double>(eval.sums.labelled) / eval.seconds);
  *result->mutable_peak_bytes() = PeakByCategory(*engine, compute.device);
  result->set_publish_max_logit_difference(kNan);
  reporter.Emit(std::move(event));
  return absl::OkStatus();
}

}  // namespace lemo::train
