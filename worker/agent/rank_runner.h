// `lemo-worker rank`: stands beside one of several ranks, between it and mpirun.
//
// mpirun gives its children no descriptors, mixes their output, kills them soon after a SIGTERM,
// and leaves them alone when it is killed itself. So each rank has a parent of ours, which
//  - gives it a log of its own (AttemptJournal::log), and rank 0 the event pipe as descriptor 3;
//  - sends it SIGTERM, once, on SIGUSR1, and kills it on SIGTERM, or when mpirun has died;
//  - notes how and when it ended (AttemptJournal::rank_end).
// The rank has a process group of its own and dies with its parent.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace lemo::agent {

// How one rank of several ended.
struct RankEnd {
  int status = 0;           // as waitpid tells it
  int64_t boot_ns = 0;      // CLOCK_BOOTTIME
  bool for_others = false;  // killed because mpirun said so, or was no more
};

// nullopt when the rank has not ended, or nobody could note it.
std::optional<RankEnd> ReadRankEnd(const std::filesystem::path& path);

// The rank that ended first of those that failed by themselves; nullopt when none did.
std::optional<int> FirstToFail(const std::vector<std::optional<RankEnd>>& ends);

// `given` is DIRECTORY ATTEMPT -- PROGRAM ARGUMENT..., with places to be filled in
// (gang_command.h); the rank's number is mpirun's OMPI_COMM_WORLD_RANK. Answers the exit code: the
// rank's own, but 0 for one that was asked to stop, so that mpirun leaves the others the time to do
// the same.
int RunRank(const std::vector<std::string>& given);

}  // namespace lemo::agent
