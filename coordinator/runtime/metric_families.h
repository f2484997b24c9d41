// Every metric of lemo-coordinator. docs/operators/metrics.md is made from this list.
#pragma once

#include "common/metrics.h"

namespace lemo::coordinator::families {

using metrics::Family;
using metrics::Type;

// --- Jobs ---
inline const Family kJobs = {
    Type::kGauge,
    "lemo_jobs",
    "Jobs that have not ended, by state (`queued`, `running`, ...) and by the reason that they are "
    "in it (`devices_busy`, `no_worker`, ...; `none` where the state says all).",
    {"state", "reason"}};
inline const Family kSubmissions = {
    Type::kCounter,
    "lemo_job_submissions_total",
    "Jobs that were `accepted` (stored), and SubmitJob calls that were `refused`, those with "
    "validate_only too. A "
    "repeated call that gets the job of the first counts as neither.",
    {"result"}};
inline const Family kOffers = {
    Type::kCounter,
    "lemo_offers_total",
    "Plans by outcome: `made` (PlanJob answered offers), `accepted` (a job took one), `none` "
    "(nothing was within the bounds), `refused` (a job named an offer that is not there).",
    {"outcome"}};
inline const Family kEnded = {
    Type::kCounter,
    "lemo_jobs_ended_total",
    "Jobs that ended, by outcome (`succeeded`, `failed`, `cancelled`) and the kind of failure "
    "(`user_error`, `out_of_memory`, `system_error`, `limit_exceeded`; `none` without one).",
    {"outcome", "failure_kind"}};
inline const Family kRestartsTotal = {
    Type::kCounter, "lemo_job_restarts_total",
    "Attempts that ended by a fault of ours or of a machine, and whose job was queued again."};
inline const Family kAmendments = {Type::kCounter,
                                   "lemo_job_amendments_total",
                                   "Amendments of running jobs. By the scheduler: `contract_cut` "
                                   "(asked to come within less, for a "
                                   "job that waits), `contract_within` (a step has kept to it), "
                                   "`contract_raised`. By the ranks, to "
                                   "keep their budget or because there is room again: `storage`, "
                                   "`offload`, `micro_batch`, `keep`, "
                                   "`evaluation`; of other kinds `other`.",
                                   {"action"}};
inline const Family kRehearsals = {
    Type::kCounter,
    "lemo_job_rehearsals_total",
    "Passes that jobs with a tight budget ran before their first step: `fitted` as forecast, or "
    "`refused` an allocation, after which a smaller way was found and the forecast corrected.",
    {"outcome"}};
inline const Family kQueueLength = {Type::kGauge, "lemo_queue_jobs",
                                    "Jobs that wait for a placement."};
inline const Family kQueueOldest = {
    Type::kGauge, "lemo_queue_oldest_seconds",
    "How long the job at the head of the queue has waited; 0 when nothing waits."};
inline const Family kQueueWait = {
    Type::kHistogram,
    "lemo_job_queue_wait_seconds",
    "From when a job was queued until it was placed; once for each placement.",
    {},
    {0.1, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400, 345600}};
inline const Family kRunTime = {
    Type::kHistogram,
    "lemo_job_run_seconds",
    "From the first placement of a job until its end, time between attempts included.",
    {"outcome"},
    {1, 10, 60, 300, 900, 3600, 14400, 43200, 86400, 259200, 604800}};

// --- Of each job that is STARTING or RUNNING ---
inline const Family kJobAttempt = {
    Type::kGauge, "lemo_job_attempt", "Number of the job's attempt, from 1.", {"job_name"}};
inline const Family kJobRestarts = {
    Type::kGauge,
    "lemo_job_restarts",
    "Attempts of the job that ended by a fault, out of `restart.limit`.",
    {"job_name"}};
inline const Family kJobStep = {
    Type::kGauge,
    "lemo_job_step",
    "Steps made by the job. Series of steps are there from the first step on.",
    {"job_name"}};
inline const Family kJobSteps = {
    Type::kGauge, "lemo_job_steps", "Steps of the whole run.", {"job_name"}};
inline const Family kJobStepSeconds = {
    Type::kGauge, "lemo_job_step_seconds", "Time of the last step.", {"job_name"}};
inline const Family kJobTokens = {Type::kGauge,
                                  "lemo_job_tokens_per_second",
                                  "Rows of the effective batch by the time of the last step.",
                                  {"job_name"}};
inline const Family kJobLoss = {
    Type::kGauge,
    "lemo_job_loss",
    "Mean loss over the labelled tokens of the last step's effective batch, in nats, before the "
    "update.",
    {"job_name"}};
inline const Family kJobEvalLoss = {
    Type::kGauge,
    "lemo_job_eval_loss",
    "Mean loss over the labelled tokens of the last evaluation, in nats; from the first evaluation "
    "on.",
    {"job_name"}};
inline const Family kJobLearningRate = {
    Type::kGauge, "lemo_job_learning_rate", "Learning rate of the last step.", {"job_name"}};
inline const Family kJobGradNorm = {Type::kGauge,
                                    "lemo_job_grad_norm",
                                    "Global norm of the last step's gradient, before clipping.",
                                    {"job_name"}};
inline const Family kJobMemory = {
    Type::kGauge,
    "lemo_job_memory_bytes",
    "Peak of the tensors' memory by category: `weights`, `trainable` (with gradients and optimizer "
    "state), `saved_activations`, `transient`, `loss`; `total` is the peak of the sum, not the sum "
    "of the peaks.",
    {"job_name", "category"}};
inline const Family kJobContract = {
    Type::kGauge,
    "lemo_job_contract_bytes",
    "Memory that each rank of the job has by contract. Not there for jobs without one.",
    {"job_name"}};
inline const Family kJobAllotment = {
    Type::kGauge,
    "lemo_job_allotted_bytes",
    "Of that, what a rank has now: less while the contract is cut (`plan.elastic`). One that is "
    "asked to come within less has what it had until a step has kept to it.",
    {"job_name"}};
inline const Family kJobBase = {
    Type::kGauge,
    "lemo_job_base_bytes",
    "Of that, frozen weights that jobs of the same `base` on one device have once between them.",
    {"job_name", "base"}};
inline const Family kJobCheckpointAge = {
    Type::kGauge,
    "lemo_job_checkpoint_age_seconds",
    "Time since the last checkpoint: the work that a fault would lose. From the first one on.",
    {"job_name"}};

// --- Workers ---
inline const Family kWorkers = {
    Type::kGauge,
    "lemo_workers",
    "Workers by state: `ready`, `cordoned`, `draining`, `lost` (for ten minutes).",
    {"state"}};
inline const Family kWorkerLease = {
    Type::kGauge,
    "lemo_worker_lease_remaining_seconds",
    "Time until the worker's lease ends; each heartbeat renews it. Negative: it is being given up.",
    {"worker"}};
inline const Family kWorkerDevices = {Type::kGauge,
                                      "lemo_worker_devices",
                                      "Devices of the worker by kind (`cpu`, `cuda`).",
                                      {"worker", "kind"}};
inline const Family kWorkerDevicesBusy = {Type::kGauge,
                                          "lemo_worker_devices_busy",
                                          "Those of them that jobs are placed on.",
                                          {"worker", "kind"}};
inline const Family kWorkerDeviceMemory = {Type::kGauge,
                                           "lemo_worker_device_memory_bytes",
                                           "Memory of the worker's devices, by kind.",
                                           {"worker", "kind"}};
inline const Family kWorkerMemory = {
    Type::kGauge, "lemo_worker_host_memory_bytes", "Memory of the worker's host.", {"worker"}};
inline const Family kAgentStreams = {Type::kGauge, "lemo_agent_streams", "Open streams of agents."};

// --- Store and events ---
inline const Family kEventLag = {
    Type::kHistogram,
    "lemo_event_lag_seconds",
    "From when a rank said an event (by its host's clock) until it was durable here. Events that "
    "waited for a coordinator that was away count with all of their wait.",
    {},
    {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 300, 3600}};
inline const Family kEvents = {
    Type::kCounter,
    "lemo_events_stored_total",
    "Events of jobs that were stored: `state` for changes of state, `contract` for amendments by "
    "the scheduler, else what the rank said "
    "(`step`, `eval`, `checkpoint`, ...).",
    {"kind"}};
inline const Family kCommit = {
    Type::kHistogram,
    "lemo_store_commit_seconds",
    "Time of a durable commit of changed jobs and their events, as the core waits for it.",
    {},
    {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10}};
inline const Family kCommitChanges = {Type::kHistogram,
                                      "lemo_store_commit_changes",
                                      "Changes of jobs that one commit made durable together.",
                                      {},
                                      {1, 2, 5, 10, 20, 50, 100, 200, 500}};
inline const Family kCommitFailures = {
    Type::kCounter, "lemo_store_commit_failures_total",
    "Commits that failed, as on a full disk; nothing of them has happened."};
inline const Family kDatabase = {Type::kGauge, "lemo_store_database_bytes",
                                 "Size of the database and its log."};
inline const Family kContent = {
    Type::kGauge,
    "lemo_content_bytes",
    "Size of uploaded files and results (`artifacts`), and of what jobs "
    "go on from (`checkpoints`); looked at once a minute at most.",
    {"kind"}};
inline const Family kDiskFree = {Type::kGauge, "lemo_disk_free_bytes",
                                 "Free space where the coordinator keeps everything."};

// --- Load ---
inline const Family kInbox = {
    Type::kGauge, "lemo_core_waiting_events",
    "Requests and messages of agents that wait for the core; calls are refused at 20000."};
inline const Family kWatchers = {Type::kGauge, "lemo_watchers", "Open WatchJob streams."};
inline const Family kValidations = {Type::kGauge,
                                    "lemo_validations",
                                    "Checks of submitted jobs, `running` and `waiting`.",
                                    {"state"}};
inline const Family kRequests = {Type::kCounter,
                                 "lemo_grpc_requests_total",
                                 "Calls that ended, by method (`JobService/SubmitJob`) and code.",
                                 {"method", "code"}};
inline const Family kRequestSeconds = {
    Type::kHistogram,
    "lemo_grpc_request_seconds",
    "Time of unary calls; streams are as long as their clients want.",
    {"method"},
    {0.001, 0.005, 0.02, 0.1, 0.5, 2, 10}};

inline metrics::Families Own() {
  return {&kJobs,
          &kSubmissions,
          &kOffers,
          &kEnded,
          &kRestartsTotal,
          &kAmendments,
          &kRehearsals,
          &kQueueLength,
          &kQueueOldest,
          &kQueueWait,
          &kRunTime,
          &kJobAttempt,
          &kJobRestarts,
          &kJobStep,
          &kJobSteps,
          &kJobStepSeconds,
          &kJobTokens,
          &kJobLoss,
          &kJobEvalLoss,
          &kJobLearningRate,
          &kJobGradNorm,
          &kJobMemory,
          &kJobContract,
          &kJobAllotment,
          &kJobBase,
          &kJobCheckpointAge,
          &kWorkers,
          &kWorkerLease,
          &kWorkerDevices,
          &kWorkerDevicesBusy,
          &kWorkerDeviceMemory,
          &kWorkerMemory,
          &kAgentStreams,
          &kEventLag,
          &kEvents,
          &kCommit,
          &kCommitChanges,
          &kCommitFailures,
          &kDatabase,
          &kContent,
          &kDiskFree,
          &kInbox,
          &kWatchers,
          &kValidations,
          &kRequests,
          &kRequestSeconds};
}

}  // namespace lemo::coordinator::families
