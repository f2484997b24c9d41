#include "cli/job_text.h"

#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/errors.h"
#include "cli/format.h"
#include "cli/output.h"
#include "cli/plan_text.h"

namespace lemo::cli {
namespace {

using lemo::v1::Job;

// Every line of `text` behind `indent`.
std::string Indented(const std::string& text, const std::string& indent) {
  std::string out = indent;
  for (size_t i = 0; i < text.size(); ++i) {
    out += text[i];
    if (text[i] == '\n' && i + 1 < text.size()) out += indent;
  }
  if (out.back() != '\n') out += '\n';
  return out;
}

std::string Change(double before, double after, int digits) {
  const bool has_before = std::isfinite(before);
  if (!std::isfinite(after)) return has_before ? Fixed(before, digits) + " (before)" : "";
  if (!has_before) return Fixed(after, digits);
  std::string text = absl::StrCat(Fixed(before, digits), " -> ", Fixed(after, digits));
  if (before != 0) absl::StrAppendFormat(&text, "  (%+.1f %%)", 100 * (after / before - 1));
  return text;
}

std::string DataText(const lemo::v1::DataSpec& data) {
  auto paths = [](const auto& files) {
    return absl::StrJoin(files, ", ", [](std::string* out, const lemo::v1::DataFile& file) {
      out->append(file.path());
    });
  };
  std::string text = paths(data.train());
  if (data.eval_size() > 0) absl::StrAppend(&text, "; eval ", paths(data.eval()));
  return text;
}

std::string ResourcesText(const lemo::v1::ResourceSpec& resources) {
  const int ranks = resources.has_ranks() ? resources.ranks() : 1;
  std::string text =
      absl::StrCat(ranks, ranks == 1 ? " rank" : " ranks",
                   resources.has_min_ranks() && resources.min_ranks() < ranks
                       ? absl::StrCat(" (", resources.min_ranks(), " at least)")
                       : "",
                   " on ", resources.has_device() ? resources.device() : "any device");
  if (resources.has_memory_bytes()) {
    absl::StrAppend(&text, ", ", HumanBytes(resources.memory_bytes()), " each");
  }
  return text;
}

// "4 ranks on 2 workers: 0-2 on alpha (workers/1, leads), 3 on beta (workers/2)".
std::string GangText(const Job& job) {
  std::vector<std::string> parts;
  int ranks = 0;
  for (const lemo::v1::GangNode& node : job.nodes()) {
    const int last = ranks + node.devices_size() - 1;
    parts.push_back(absl::StrCat(
        ranks == last ? absl::StrCat(ranks) : absl::StrCat(ranks, "-", last), " on ", node.host(),
        " (", node.worker(), parts.empty() && job.nodes_size() > 1 ? ", leads)" : ")"));
    ranks = last + 1;
  }
  return absl::StrCat(
      ranks, ranks == 1 ? " rank" : " ranks", " on ", job.nodes_size(),
      job.nodes_size() == 1 ? " worker: " : " workers: ", absl::StrJoin(parts, ", "));
}

}  // namespace

bool IsFinal(Job::State state) {
  return state == Job::SUCCEEDED || state == Job::FAILED || state == Job::CANCELLED;
}

std::string StateName(Job::State state) {
  const std::string& name = Job::State_Name(state);
  return name.empty() ? absl::StrCat("state ", static_cast<int>(state)) : name;
}

int ExitCodeOf(Job::State final_state) {
  switch (final_state) {
    case Job::SUCCEEDED:
      return kExitOk;
    case Job::CANCELLED:
      return kExitJobCancelled;
    default:
      return kExitJobFailed;
  }
}

std::string ProgressText(const lemo::v1::Progress& progress, int64_t memory_limit) {
  if (progress.step() == 0) return "";
  std::string text = absl::StrCat(
      "step ", progress.step(), "/", progress.steps(), "  loss ", Fixed(progress.loss(), 4), "  ",
      ShortCount(progress.tokens_per_second()), " tok/s  ", HumanBytes(progress.peak_bytes()));
  if (memory_limit > 0) absl::StrAppend(&text, " of ", HumanBytes(memory_limit));
  absl::StrAppend(&text, "  ETA ", ClockDuration(progress.eta_seconds()));
  return text;
}

std::string ViolationText(const lemo::v1::Violation& violation) {
  std::string out;
  auto part = [&out](const std::string& text) {
    if (!text.empty()) absl::StrAppend(&out, out.empty() ? "" : ": ", text);
  };
  part(violation.field());
  part(violation.line() > 0 ? absl::StrCat(violation.file(), ":", violation.line())
                            : violation.file());
  part(violation.json_path());
  part(violation.reason());
  return out;
}

std::string FailureText(const lemo::v1::Failure& failure) {
  std::string out = Indented(Printable(failure.message()), "  ");
  for (const lemo::v1::Violation& violation : failure.violations()) {
    const std::string text = ViolationText(violation);
    if (absl::StrContains(failure.message(), text)) continue;  // the message is that very list
    out += Indented(Printable(text), "  ");
  }
  if (!failure.log_tail().empty()) {
    absl::StrAppend(&out, "  Rank ", failure.rank(), " wrote last:\n",
                    Indented(Printable(failure.log_tail()), "    "));
  }
  if (!failure.advice().empty()) {
    out += Indented("What to do: " + Printable(failure.advice()), "  ");
  }
  return out;
}

std::string ResultText(const lemo::v1::ResultEvent& result) {
  Details details;
  details.Add("steps", HumanCount(result.steps()));
  details.Add("tokens",
              absl::StrCat(HumanCount(result.tokens()), " (", HumanCount(result.labelled_tokens()),
                           " with loss) in ", HumanDuration(result.seconds()), ", ",
                           ShortCount(result.tokens_per_second()), " tokens/s"));
  // Zero stands for "no evaluation" in messages of other writers than lemo-train.
  if (result.eval_loss() != 0) {
    details.Add("eval loss", Change(result.eval_loss_before(), result.eval_loss(), 4));
    details.Add("perplexity", Change(result.perplexity_before(), result.perplexity(), 2));
  }
  details.Add("train loss", Fixed(result.train_loss(), 4));
  if (result.has_peak_bytes()) {
    details.Add("peak memory", HumanBytes(result.peak_bytes().total()));
  }
  const lemo::v1::RunForecast& forecast = result.forecast();
  if (forecast.predicted_peak_bytes() > 0) {
    details.Add("foretold", absl::StrCat(HumanBytes(forecast.predicted_peak_bytes()), ", at most ",
                                         HumanBytes(forecast.high_peak_bytes())));
  }
  const auto time = [&details](const char* name, double measured, double predicted) {
    if (!(measured > 0)) return;
    const std::string foretold =
        predicted > 0 ? absl::StrCat(" (the worker foretold ", Significant(predicted, 3), " s)")
                      : "";
    details.Add(name, absl::StrCat(Significant(measured, 3), " s in the mean", foretold));
  };
  time("step", forecast.measured_step_seconds(), forecast.predicted_step_seconds());
  time("evaluation", forecast.measured_evaluation_seconds(),
       forecast.predicted_evaluation_seconds());
  return Indented(details.ToString(), "  ");
}

// "1.2 GiB of them now; asked to come within 1.0 GiB, for jobs/7".
std::string AllotmentText(const lemo::v1::Allotment& allotment) {
  std::string text = absl::StrCat(HumanBytes(allotment.memory_bytes()), " a rank");
  if (allotment.asked_bytes() > 0) {
    absl::StrAppend(&text, "; asked to come within ", HumanBytes(allotment.asked_bytes()));
  }
  if (!allotment.for_job().empty()) absl::StrAppend(&text, ", for ", allotment.for_job());
  return text;
}

std::string ContractText(const lemo::v1::Contract& contract) {
  const lemo::v1::Offer& offer = contract.offer();
  Details details;
  details.Add("offer",
              absl::StrCat(offer.id(), ", ", HumanBytes(contract.memory_bytes()),
                           " a rank at most, ", HumanDuration(offer.run_seconds()), " of running"));
  details.Add("stores", absl::StrCat(StorageText(offer), "; windows of ", offer.window(), ", ",
                                     offer.micro_batch_sequences(), " at a time; ",
                                     Fixed(100 * offer.kept(), 1), " % of the rows"));
  details.Add("device", Printable(offer.device_type()));
  if (contract.base_bytes() > 0) {
    details.Add("base",
                absl::StrCat(HumanBytes(contract.base_bytes()),
                             " of them frozen weights, which jobs on one device have once (",
                             contract.base().substr(0, 8), ")"));
  }
  return Indented(details.ToString(), "  ");
}

// Budget beside use by category, and predicted beside actual times.
std::string ContractReport(const Job& job) {
  const lemo::v1::Contract& contract = job.contract();
  const lemo::v1::Offer& offer = contract.offer();
  const lemo::v1::PeakBytes& peak = job.progress().peak();
  const bool has_peak = job.progress().step() > 0;
  Table bytes({"memory of a rank", "at most", "expected", "peak so far"});
  const auto row = [&](const char* name, int64_t (lemo::v1::PeakBytes::*get)() const) {
    bytes.Add({name, HumanBytes((offer.high().*get)()), HumanBytes((offer.expected().*get)()),
               has_peak ? HumanBytes((peak.*get)()) : ""});
  };
  row("weights", &lemo::v1::PeakBytes::weights);
  row("trainable", &lemo::v1::PeakBytes::trainable);
  row("saved activations", &lemo::v1::PeakBytes::saved_activations);
  row("transient", &lemo::v1::PeakBytes::transient);
  row("loss", &lemo::v1::PeakBytes::loss);
  row("total", &lemo::v1::PeakBytes::total);
  Table times({"time", "predicted", "actual"});
  // Of a finished run the mean, which the prediction is of; before that the last step.
  const double mean = job.result().forecast().measured_step_seconds();
  const double actual = mean > 0 ? mean : job.progress().step_seconds();
  times.Add({"step", absl::StrCat(Significant(offer.step().total(), 3), " s"),
             has_peak ? absl::StrCat(Significant(actual, 3), " s") : ""});
  std::string ends;
  if (job.has_end_time()) {
    ends = Time(job.end_time());
  } else if (job.progress().eta_seconds() > 0) {
    google::protobuf::Timestamp end = job.update_time();
    end.set_seconds(end.seconds() + static_cast<int64_t>(job.progress().eta_seconds()));
    ends = absl::StrCat(Time(end), " expected now");
  }
  times.Add({"end", offer.has_finish_time() ? Time(offer.finish_time()) : "not known", ends});
  std::string text = ContractText(contract);
  if (job.has_allotment()) {
    Details now;
    now.Add("now", AllotmentText(job.allotment()));
    text += Indented(now.ToString(), "  ");
  }
  return absl::StrCat("\ncontract\n", text, Indented(bytes.ToString(), "  "),
                      Indented(times.ToString(), "  "));
}

std::string JobText(const Job& job) {
  Details details;
  details.Add("name", job.name());
  details.Add("display name", job.spec().display_name());
  details.Add("state", StateName(job.state()));
  details.Add("reason", job.reason());
  if (job.stop_request() == Job::STOP_PAUSE) details.Add("asked to", "pause");
  if (job.stop_request() == Job::STOP_CANCEL) details.Add("asked to", "cancel");
  details.Add(
      "progress",
      ProgressText(job.progress(), job.has_contract() ? job.contract().memory_bytes()
                                                      : job.spec().limits().host_memory_bytes()));
  if (job.progress().checkpoint_step() > 0) {
    details.Add("checkpoint", absl::StrCat("step ", job.progress().checkpoint_step(), " at ",
                                           Time(job.progress().checkpoint_time())));
  }
  details.Add("created", Time(job.create_time()));
  if (job.has_start_time()) details.Add("started", Time(job.start_time()));
  if (job.has_end_time()) {
    const google::protobuf::Timestamp& from =
        job.has_start_time() ? job.start_time() : job.create_time();
    details.Add("ended", absl::StrCat(Time(job.end_time()), " after ",
                                      HumanDuration(Seconds(job.end_time()) - Seconds(from))));
  }
  details.Add("worker", job.worker());
  if (job.nodes_size() > 1 || (job.nodes_size() == 1 && job.nodes(0).devices_size() > 1)) {
    details.Add("gang", GangText(job));
  }
  if (job.attempt() > 1) {
    const lemo::v1::RestartSpec& restart = job.spec().restart();
    details.Add("attempt",
                absl::StrCat(job.attempt(), " (", job.restarts(), " restarts",
                             restart.has_limit() ? absl::StrCat(" of ", restart.limit(), " allowed")
                                                 : std::string(),
                             ")"));
  }
  details.Add("model", job.spec().run().model().path());
  details.Add("data", DataText(job.spec().run().data()));
  details.Add("resources", ResourcesText(job.spec().resources()));
  for (const auto& [key, value] : job.spec().labels()) {
    details.Add("label", absl::StrCat(key, " = ", value));
  }
  std::string out = details.ToString();
  if (job.has_failure()) {
    absl::StrAppend(&out, "\nfailed (", lemo::v1::Failure::Kind_Name(job.failure().kind()), ")\n",
                    FailureText(job.failure()));
  }
  if (job.has_contract()) out += ContractReport(job);
  if (job.has_result()) absl::StrAppend(&out, "\nresult\n", ResultText(job.result()));
  if (job.artifacts_size() > 0) {
    Table table({"artifact", "bytes"});
    for (const lemo::v1::Artifact& artifact : job.artifacts()) {
      table.Add({artifact.path(), HumanCount(artifact.bytes())});
    }
    absl::StrAppend(&out, "\n", table.ToString());
  }
  return out;
}

}  // namespace lemo::cli
