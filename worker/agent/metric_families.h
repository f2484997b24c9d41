// Every metric of lemo-worker. docs/operators/metrics.md is made from this list.
#pragma once

#include "common/metrics.h"

namespace lemo::agent::families {

using metrics::Family;
using metrics::Type;

// --- The agent ---
inline const Family kConnected = {Type::kGauge, "lemo_agent_connected",
                                  "1 while the coordinator answers, else 0."};
inline const Family kLeaseAge = {
    Type::kGauge, "lemo_agent_lease_age_seconds",
    "Time since the agent sent the heartbeat that was answered last. At two thirds of the lease it "
    "ends its ranks. From the first lease on."};
inline const Family kLease = {Type::kGauge, "lemo_agent_lease_seconds",
                              "Length of the lease. From the first lease on."};
inline const Family kDraining = {Type::kGauge, "lemo_agent_draining",
                                 "1 while the agent lets its jobs go in order to leave, else 0."};
inline const Family kAttempts = {
    Type::kGauge,
    "lemo_agent_attempts",
    "Attempts here, by state: `fetching` files, `running`, `handing_over` the result, `ended` and "
    "not yet known to the coordinator.",
    {"state"}};
inline const Family kGangsStarted = {Type::kCounter, "lemo_agent_gangs_started_total",
                                     "Gangs of ranks that were started."};
inline const Family kEnded = {
    Type::kCounter,
    "lemo_agent_attempts_ended_total",
    "Attempts that ended, by outcome (`succeeded`, `failed`, `stopped` as asked) and kind of "
    "failure (as of lemo_jobs_ended_total).",
    {"outcome", "failure_kind"}};
inline const Family kLimits = {
    Type::kCounter,
    "lemo_agent_limits_exceeded_total",
    "Attempts that were ended because of a limit of their job: `run_seconds`, `disk_bytes`, "
    "`host_memory_bytes`.",
    {"limit"}};
inline const Family kSpoolEvents = {Type::kGauge, "lemo_agent_spool_waiting_events",
                                    "Events of ranks that the coordinator has not acknowledged."};
inline const Family kSpoolBytes = {
    Type::kGauge, "lemo_agent_spool_bytes",
    "Size of the files that keep events until the coordinator has forgotten their attempt."};

// --- The machine ---
inline const Family kDevices = {
    Type::kGauge, "lemo_agent_devices", "Devices by kind (`cpu`, `cuda`).", {"kind"}};
inline const Family kDevicesBusy = {
    Type::kGauge, "lemo_agent_devices_busy", "Those of them that ranks run on.", {"kind"}};
inline const Family kDeviceMemory = {
    Type::kGauge, "lemo_agent_device_memory_bytes", "Memory of the devices, by kind.", {"kind"}};
inline const Family kHostMemory = {Type::kGauge, "lemo_agent_host_memory_bytes",
                                   "Memory of the host."};
inline const Family kHostMemoryFree = {
    Type::kGauge, "lemo_agent_host_memory_available_bytes",
    "Memory of the host that programs can have without swapping."};
inline const Family kBases = {
    Type::kGauge, "lemo_agent_bases_bytes",
    "Frozen weights that ranks here have once between them, and those kept for later ones "
    "(--idle-bases); looked at when a job has gone, and once a minute."};
inline const Family kDirectory = {
    Type::kGauge,
    "lemo_agent_directory_bytes",
    "Size of what the agent keeps: input `files`, `models` that it fetched, `jobs` with their "
    "checkpoints; looked at once a minute at most.",
    {"kind"}};
inline const Family kDiskFree = {Type::kGauge, "lemo_disk_free_bytes",
                                 "Free space where the agent keeps everything."};

// --- Of each attempt whose ranks run ---
inline const Family kGangResident = {
    Type::kGauge,
    "lemo_gang_resident_memory_bytes",
    "Resident memory of all processes of the job's ranks here, as limits.host_memory_bytes counts.",
    {"job_name"}};
inline const Family kGangCpu = {
    Type::kCounter,
    "lemo_gang_cpu_seconds_total",
    "CPU time that those of them which live have taken, user and system.",
    {"job_name"}};

// --- Of their ranks ---
inline const Family kRankStep = {
    Type::kGauge,
    "lemo_rank_step",
    "Steps made by the rank. Series of steps are there from the attempt's first step on.",
    {"job_name", "rank"}};
inline const Family kRankSteps = {
    Type::kGauge, "lemo_rank_steps", "Steps of the whole run.", {"job_name", "rank"}};
inline const Family kRankStepSeconds = {
    Type::kGauge, "lemo_rank_step_seconds", "Time of the last step.", {"job_name", "rank"}};
inline const Family kRankTokens = {Type::kGauge,
                                   "lemo_rank_tokens_per_second",
                                   "Rows of the effective batch by the time of the last step.",
                                   {"job_name", "rank"}};
inline const Family kRankLoss = {
    Type::kGauge,
    "lemo_rank_loss",
    "Mean loss over the labelled tokens of the last step's effective batch, in nats, before the "
    "update.",
    {"job_name", "rank"}};
inline const Family kRankLearningRate = {Type::kGauge,
                                         "lemo_rank_learning_rate",
                                         "Learning rate of the last step.",
                                         {"job_name", "rank"}};
inline const Family kRankGradNorm = {Type::kGauge,
                                     "lemo_rank_grad_norm",
                                     "Global norm of the last step's gradient, before clipping.",
                                     {"job_name", "rank"}};
inline const Family kRankMemory = {
    Type::kGauge,
    "lemo_rank_memory_bytes",
    "Peak of the tensors' memory by category, as lemo_job_memory_bytes; of ranks other than 0 the "
    "total.",
    {"job_name", "rank", "category"}};
inline const Family kRankBusy = {
    Type::kGauge,
    "lemo_rank_busy_seconds",
    "Time that the rank's own work took in the step before the last. Of jobs of several ranks.",
    {"job_name", "rank"}};
inline const Family kRankCollectiveWait = {
    Type::kGauge,
    "lemo_rank_collective_wait_seconds",
    "Time that rank 0 waited for the others in the last step. Of jobs of several ranks.",
    {"job_name", "rank"}};
inline const Family kRankRowsKept = {
    Type::kGauge,
    "lemo_rank_rows_kept_ratio",
    "Share of the rows that a layer's `attention` or `mlp` computed in the last step, mean of the "
    "layers. This and the next four are there while the last step dropped rows.",
    {"job_name", "rank", "sub_block"}};
inline const Family kRankNeverKept = {
    Type::kGauge,
    "lemo_rank_rows_never_kept_ratio",
    "Share of the last step's rows that no attention and no MLP of a layer that drops rows "
    "computed.",
    {"job_name", "rank"}};
inline const Family kRankLossKept = {Type::kGauge,
                                     "lemo_rank_labelled_rows_kept_ratio",
                                     "Share of the last step's labelled rows that carried loss.",
                                     {"job_name", "rank"}};
inline const Family kRankSelectionTime = {Type::kGauge,
                                          "lemo_rank_selection_time_ratio",
                                          "Share of the last step's time that choosing rows took.",
                                          {"job_name", "rank"}};
inline const Family kRankRecall = {
    Type::kGauge,
    "lemo_rank_selection_recall_ratio",
    "Of the blocks that true attention scores would have kept, the share that was kept; mean of "
    "the layers measured last. From the first measurement on.",
    {"job_name", "rank"}};
inline const Family kRankBadBlocks = {
    Type::kCounter,
    "lemo_rank_bad_blocks_total",
    "Blocks of rows whose score was not finite in the attempt's steps; they were kept. From the "
    "first step that drops rows on.",
    {"job_name", "rank"}};
inline const Family kRankCheckpointAge = {
    Type::kGauge,
    "lemo_rank_checkpoint_age_seconds",
    "Time since the attempt's last checkpoint. From the first one on.",
    {"job_name", "rank"}};

inline metrics::Families Own() {
  return {&kConnected,        &kLeaseAge,      &kLease,          &kDraining,
          &kAttempts,         &kGangsStarted,  &kEnded,          &kLimits,
          &kSpoolEvents,      &kSpoolBytes,    &kDevices,        &kDevicesBusy,
          &kDeviceMemory,     &kHostMemory,    &kHostMemoryFree, &kBases,
          &kDirectory,        &kDiskFree,      &kRankStep,       &kRankSteps,
          &kRankStepSeconds,  &kRankTokens,    &kRankLoss,       &kRankLearningRate,
          &kRankGradNorm,     &kRankMemory,    &kRankBusy,       &kRankCollectiveWait,
          &kRankRowsKept,     &kRankNeverKept, &kRankLossKept,   &kRankSelectionTime,
          &kRankRecall,       &kRankBadBlocks, &kGangResident,   &kGangCpu,
          &kRankCheckpointAge};
}

}  // namespace lemo::agent::families
