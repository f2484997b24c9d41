// What jobs have of their contracts: cut for one that waits, and given back.
//
// A cut is asked, followed and only then counted: CUT, then WITHIN by the first step that has kept
// to it. A raise counts at once. So that a step can be told to belong to the one or the other, a
// job is cut only when its last step was computed with what it has now: the numbers that steps tell
// after that are this one, and then the one that is asked.
//
// All bytes are of one rank. A gang is held to what its lead was told, and tells of the rank that
// has most.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/core/core.h"
#include "scheduler/elastic.h"

namespace lemo::coordinator {

using lemo::v1::ContractChange;
using lemo::v1::Job;

namespace {

int64_t AllottedBytes(const Job& job) {
  return job.has_allotment() ? job.allotment().memory_bytes() : job.contract().memory_bytes();
}

// What the ranks are held to when they are given so much: their own bound may be less.
int64_t BudgetOf(const Job& job, int64_t bytes) {
  const lemo::v1::MemorySpec& memory = job.spec().run().memory();
  return memory.has_budget_bytes() ? std::min(memory.budget_bytes(), bytes) : bytes;
}

scheduler::Elastic ElasticOf(const Job& job) {
  scheduler::Elastic elastic;
  elastic.occupant = OccupantOf(job);
  elastic.asked_bytes = job.allotment().asked_bytes();
  if (CanBeCut(job)) {
    elastic.least_bytes =
        std::max(job.progress().memory().least_bytes(), job.spec().plan().min_memory_bytes());
  }
  // Who ends needs no more.
  elastic.most_bytes =
      job.reason_code() == Job::STOPPING ? AllottedBytes(job) : job.contract().memory_bytes();
  return elastic;
}

}  // namespace

bool CanBeCut(const Job& job) {
  const lemo::v1::StepMemory& memory = job.progress().memory();
  return job.state() == Job::RUNNING && job.reason_code() != Job::STOPPING && job.has_contract() &&
         job.spec().plan().elastic() && memory.least_bytes() > 0 &&
         job.allotment().asked_bytes() == 0 &&
         memory.budget_bytes() == BudgetOf(job, AllottedBytes(job));
}

bool Core::HasCuts() const {
  return std::any_of(jobs_.begin(), jobs_.end(), [](const auto& entry) {
    const Job& job = entry.second.job;
    return job.has_allotment() && job.allotment().memory_bytes() < job.contract().memory_bytes();
  });
}

std::pair<std::string, std::string> Core::MakeRoom(const std::vector<scheduler::Waiting>& waiting) {
  std::vector<scheduler::Elastic> elastic;
  for (const auto& [name, record] : jobs_) {
    if (record.job.has_allotment() || CanBeCut(record.job)) {
      elastic.push_back(ElasticOf(record.job));
    }
  }
  if (elastic.empty()) return {};
  std::vector<scheduler::Worker> workers, returning;
  AddWorkers(/*idle=*/false, &workers, &returning);
  // The first that waits for a device: those behind it wait for it, too.
  const auto first = std::find_if(waiting.begin(), waiting.end(), [](const auto& one) {
    return one.reason == scheduler::WaitReason::kDevicesBusy;
  });
  if (first == waiting.end()) {
    for (const scheduler::Allotment& raise : scheduler::PlanRaises(std::move(workers), elastic)) {
      Allot(jobs_.at(raise.job), raise.memory_bytes, "");
    }
    return {};
  }
  const scheduler::Cuts cuts =
      scheduler::PlanCuts(workers, elastic, SchedulerRequest(jobs_.at(first->job)));
  if (cuts.from.empty()) return {};
  for (const scheduler::Allotment& cut : cuts.jobs) {
    Allot(jobs_.at(cut.job), cut.memory_bytes, first->job);
  }
  return {first->job, absl::StrCat(absl::StrJoin(cuts.from, ", "),
                                   cuts.from.size() == 1 ? " makes" : " make", " room for it")};
}

void Core::Allot(JobRecord& record, int64_t memory_bytes, const std::string& for_job) {
  Job& job = record.job;
  const int64_t now = AllottedBytes(job);
  lemo::v1::Allotment& allotment = *job.mutable_allotment();
  ContractChange& change = *AddEvent(record).mutable_contract();
  change.set_from_bytes(now);
  change.set_to_bytes(memory_bytes);
  if (memory_bytes < now) {
    change.set_kind(ContractChange::CUT);
    change.set_for_job(for_job);
    allotment.set_memory_bytes(now);
    allotment.set_asked_bytes(memory_bytes);
    allotment.set_for_job(for_job);
  } else {
    change.set_kind(ContractChange::RAISED);
    allotment.set_memory_bytes(memory_bytes);
    if (memory_bytes >= job.contract().memory_bytes()) allotment.clear_for_job();
  }
  SendBudget(record);
}

void Core::SendBudget(const JobRecord& record) {
  const lemo::v1::Allotment& allotment = record.job.allotment();
  lemo::v1::CoordinatorMessage message;
  *message.mutable_budget()->mutable_id() = IdOf(record);
  message.mutable_budget()->set_bytes(allotment.asked_bytes() > 0 ? allotment.asked_bytes()
                                                                  : allotment.memory_bytes());
  SendTo(record.job.worker(), std::move(message));
}

void Core::OnMemory(JobRecord& record, bool could_be_cut) {
  Job& job = record.job;
  const lemo::v1::StepMemory& memory = job.progress().memory();
  const int64_t asked = job.allotment().asked_bytes();
  if (asked > 0 && memory.budget_bytes() == BudgetOf(job, asked) && memory.peak_bytes() <= asked) {
    ContractChange& change = *AddEvent(record).mutable_contract();
    change.set_kind(ContractChange::WITHIN);
    change.set_from_bytes(job.allotment().memory_bytes());
    change.set_to_bytes(asked);
    change.set_for_job(job.allotment().for_job());
    job.mutable_allotment()->set_memory_bytes(asked);
    job.mutable_allotment()->clear_asked_bytes();
    RequestPlacement();
  }
  // It may have what one that waits needs.
  if (!could_be_cut && !queue_.empty() && CanBeCut(job)) RequestPlacement();
}

}  // namespace lemo::coordinator
