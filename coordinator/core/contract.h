// What a job asks of the planner, which offer it takes, what an accepted one makes of it, and what
// its run tells of the planner in the end.
//
// Pure. The offers themselves come from lemo-train, which knows model and data.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/violations.h"
#include "coordinator/core/core.h"
#include "lemo/v1/job.pb.h"
#include "lemo/v1/job_spec.pb.h"
#include "lemo/v1/plan.pb.h"
#include "scheduler/occupancy.h"

namespace lemo::coordinator {

// Faults of `spec.plan`, and of what does not go with it; none without one.
void CheckPlan(const lemo::v1::JobSpec& spec, absl::Time now, Violations* violations);

// `spec.plan` as lemo-train takes it: without what only the service knows, and with the default of
// `ranks`. `spec` has no faults.
lemo::v1::PlanSpec PlanQuestion(const lemo::v1::JobSpec& spec, absl::Time now);

// When each offer could start and end, as things are now; `record` is of the job that asks. Then
// those that would end after `finish_by` are no offers, nor those of which nobody can say.
void AddTimes(const scheduler::Scheduler& scheduler, const scheduler::Outlook& outlook,
              const JobRecord& record, absl::Time now, lemo::v1::PlanResult* plan);

// The offer that `spec.plan` takes, as a contract. Else a USER_ERROR that says what each bound
// would have to become, or what to do about an id that is of no offer.
struct Acceptance {
  std::optional<lemo::v1::Contract> contract;
  lemo::v1::Failure failure;
};
Acceptance Accept(const lemo::v1::JobSpec& spec, const lemo::v1::PlanResult& plan, absl::Time now);

// What the contract's bytes have in common with those of other jobs: the frozen weights, where each
// rank computes with all of them. Two contracts name one base only where the ranks map the same
// memory: the same files of one place, in one type.
void NameBase(const JobRecord& record, lemo::v1::Contract* contract);
scheduler::Base BaseOf(const lemo::v1::Contract& contract);

// Sets what the offer fixes: fields of the run, ranks, device and memory.
void ApplyContract(const lemo::v1::Contract& contract, lemo::v1::JobSpec* spec);

// What a job that succeeded by contract tells of the planner's times: its offer's forecast, beside
// what the run took. Nothing of other jobs, of offers that foretold no time, and of runs that did
// not say how long they took.
std::optional<lemo::v1::RunTime> RunTimeOf(const lemo::v1::Job& job);

}  // namespace lemo::coordinator
