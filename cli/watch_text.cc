#include "cli/watch_text.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/format.h"
#include "cli/job_text.h"

namespace lemo::cli {
namespace {

using lemo::v1::Job;
using lemo::v1::JobEvent;
using lemo::v1::RunEvent;

constexpr char kEraseLine[] = "\r\x1b[K";

// Share of the rows that sub-blocks computed, mean of all, and recall where it was measured; "" for
// a step of all rows.
std::string Kept(const lemo::v1::StepEvent& step) {
  const lemo::v1::TokenSparsity& sparsity = step.sparsity();
  const int sub_blocks = sparsity.attention_kept_size() + sparsity.mlp_kept_size();
  if (sub_blocks == 0) return "";
  double sum = 0;
  for (const double share : sparsity.attention_kept()) sum += share;
  for (const double share : sparsity.mlp_kept()) sum += share;
  std::string kept = absl::StrFormat("kept %.0f %%", 100 * sum / sub_blocks);
  double recall = 0;
  for (const double share : sparsity.recall()) recall += share / sparsity.recall_size();
  if (!sparsity.recall().empty()) absl::StrAppendFormat(&kept, " (recall %.0f %%)", 100 * recall);
  return kept;
}

std::string RunText(const RunEvent& run) {
  switch (run.event_case()) {
    case RunEvent::kPhase:
      return absl::StrFormat("%-10s  %s  %s", "phase", run.phase().name(), run.phase().detail());
    case RunEvent::kStep: {
      const lemo::v1::StepEvent& step = run.step();
      const std::string kept = Kept(step);
      return absl::StrFormat(
          "%-10s  %d/%d  loss %s  lr %.2e  grad norm %s  %s tok/s%s%s  peak %s  ETA %s", "step",
          step.step(), step.steps(), Fixed(step.loss(), 4), step.learning_rate(),
          Significant(step.grad_norm(), 3), ShortCount(step.tokens_per_second()),
          kept.empty() ? "" : "  ", kept, HumanBytes(step.peak_bytes()),
          ClockDuration(step.eta_seconds()));
    }
    case RunEvent::kEval:
      if (!run.eval().recall().empty()) {  // of a predictor
        double recall = 0;
        for (const double share : run.eval().recall()) recall += share / run.eval().recall_size();
        return absl::StrFormat("%-10s  at step %d  loss %s  recall %s %%", "eval",
                               run.eval().step(), Fixed(run.eval().loss(), 4),
                               Fixed(100 * recall, 1));
      }
      return absl::StrFormat(
          "%-10s  at step %d  loss %s  perplexity %s  accuracy %s %%%s", "eval", run.eval().step(),
          Fixed(run.eval().loss(), 4), Significant(run.eval().perplexity(), 5),
          Fixed(100 * run.eval().token_accuracy(), 1), run.eval().best() ? "  best" : "");
    case RunEvent::kCheckpoint:
      return run.checkpoint().reason() == "resumed"
                 ? absl::StrFormat("%-10s  resumed at step %d", "checkpoint",
                                   run.checkpoint().step())
                 : absl::StrFormat("%-10s  saved step %d (%s, %s)", "checkpoint",
                                   run.checkpoint().step(), HumanBytes(run.checkpoint().bytes()),
                                   HumanDuration(run.checkpoint().seconds()));
    case RunEvent::kWarning:
      return absl::StrFormat("%-10s  %s%s", "warning",
                             run.warning().field().empty() ? "" : run.warning().field() + ": ",
                             run.warning().message());
    case RunEvent::kResult:
      return absl::StrFormat("%-10s  %d steps, %s tokens in %s, train loss %s", "result",
                             run.result().steps(), HumanCount(run.result().tokens()),
                             HumanDuration(run.result().seconds()),
                             Fixed(run.result().train_loss(), 4));
    case RunEvent::kError:
      return absl::StrFormat("%-10s  %s", "error", run.error().message());
    case RunEvent::kSelection:
      return absl::StrFormat("%-10s  blocks kept in step %d", "selection", run.selection().step());
    case RunEvent::kAmendment: {
      const lemo::v1::AmendmentEvent& amendment = run.amendment();
      return absl::StrFormat("%-10s  from step %d%s%s: %s instead of %s", "amended",
                             amendment.step(), amendment.layers().empty() ? "" : ", layers ",
                             amendment.layers(), amendment.to(), amendment.from());
    }
    case RunEvent::kShadow:
      return absl::StrFormat("%-10s  at step %d  loss %s with all rows, %s with the kept ones%s",
                             "shadow", run.shadow().step(), Fixed(run.shadow().dense_loss(), 4),
                             Fixed(run.shadow().sparse_loss(), 4),
                             run.shadow().verdict() == "within"
                                 ? ""
                                 : absl::StrCat("; more of them: ", run.shadow().verdict()));
    case RunEvent::kRehearsal:
      return absl::StrFormat(
          "%-10s  a pass of step %d, %s rows: %s forecast, %s measured, of %s", "rehearsal",
          run.rehearsal().step(), HumanCount(run.rehearsal().rows()),
          HumanBytes(run.rehearsal().predicted_bytes()), HumanBytes(run.rehearsal().peak_bytes()),
          HumanBytes(run.rehearsal().budget_bytes()));
    case RunEvent::EVENT_NOT_SET:
      return "event of a kind that this version does not know";
  }
  return "";
}

std::string ContractChangeText(const lemo::v1::ContractChange& change) {
  const std::string to = HumanBytes(change.to_bytes()), from = HumanBytes(change.from_bytes());
  switch (change.kind()) {
    case lemo::v1::ContractChange::CUT:
      return absl::StrCat("asked to come within ", to, " instead of ", from,
                          " a rank: ", change.for_job(), " waits for the room");
    case lemo::v1::ContractChange::WITHIN:
      return absl::StrCat("keeps to ", to, " a rank");
    case lemo::v1::ContractChange::RAISED:
      return absl::StrCat("may have ", to, " a rank again instead of ", from);
    default:
      return "change of a kind that this version does not know";
  }
}

std::string OneLine(std::string text) {
  text = Printable(std::move(text));
  while (!text.empty() && (text.back() == ' ' || text.back() == '\n')) text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

}  // namespace

std::string WatchText::Line(const JobEvent& event) const {
  const std::string text =
      event.has_state()
          ? absl::StrFormat("%-10s  %s", StateName(event.state().to()), event.state().reason())
      : event.has_contract()
          ? absl::StrFormat("%-10s  %s", "contract", ContractChangeText(event.contract()))
          : RunText(event.run());
  return absl::StrCat(Time(event.time()), "  ", OneLine(text), "\n");
}

bool WatchText::IsKept(const JobEvent& event) const {
  if (!options_.terminal) return true;
  if (event.has_state()) {
    // What the live line shows in passing, but for a running job that has to go back.
    const Job::State from = event.state().from();
    const Job::State to = event.state().to();
    return (from == Job::RUNNING || from == Job::STARTING) &&
           (to == Job::QUEUED || to == Job::PAUSED);
  }
  return !event.run().has_step() && !event.run().has_phase() && !event.run().has_result() &&
         !event.run().has_selection();
}

std::string WatchText::Event(const JobEvent& event) {
  const std::string line = IsKept(event) ? Line(event) : "";
  if (event.has_state()) {
    state_ = event.state().to();
    reason_ = event.state().reason();
    if (state_ != Job::RUNNING) phase_.clear();
  } else if (event.run().has_phase()) {
    const lemo::v1::PhaseEvent& phase = event.run().phase();
    phase_ = absl::StrCat(phase.name(), phase.detail().empty() ? "" : " ", phase.detail());
  } else if (event.run().has_step()) {
    const lemo::v1::StepEvent& step = event.run().step();
    phase_.clear();
    kept_ = Kept(step);
    progress_.set_step(step.step());
    progress_.set_steps(step.steps());
    progress_.set_loss(step.loss());
    progress_.set_tokens_per_second(step.tokens_per_second());
    progress_.set_peak_bytes(step.peak_bytes());
    progress_.set_eta_seconds(step.eta_seconds());
  }
  return line.empty() ? "" : Erase() + line;
}

std::string WatchText::LiveLine() const {
  std::string line = StateName(state_);
  auto part = [&line](const std::string& text) {
    if (!text.empty()) absl::StrAppend(&line, "  ", text);
  };
  // While steps come, they say more than the reason and the phase.
  if (state_ == Job::RUNNING) {
    part(phase_);
    part(ProgressText(progress_, options_.memory_limit));
    part(kept_);
    if (phase_.empty() && progress_.step() == 0) part(reason_);
  } else {
    part(reason_);
    part(ProgressText(progress_, options_.memory_limit));
  }
  return line;
}

std::string WatchText::Draw() { return DrawNote(LiveLine()); }

std::string WatchText::DrawNote(const std::string& note) {
  if (!options_.terminal) return "";
  drawn_ = true;
  // The last column makes some terminals wrap.
  return absl::StrCat(kEraseLine, OneLine(note).substr(0, std::max(options_.width - 1, 1)));
}

std::string WatchText::Erase() { return std::exchange(drawn_, false) ? kEraseLine : ""; }

std::string WatchText::Ending(const Job& job) {
  switch (job.state()) {
    case Job::SUCCEEDED:
      return absl::StrCat("\n", job.name(), " succeeded\n",
                          job.has_result() ? ResultText(job.result()) : "",
                          "Fetch the result: lemo job fetch ", job.name(), "\n");
    case Job::FAILED:
      return absl::StrCat("\n", job.name(), " failed (",
                          lemo::v1::Failure::Kind_Name(job.failure().kind()), ")\n",
                          FailureText(job.failure()), "Its log: lemo job logs ", job.name(), "\n");
    default:
      return absl::StrCat("\n", job.name(), " was cancelled\n");
  }
}

}  // namespace lemo::cli
