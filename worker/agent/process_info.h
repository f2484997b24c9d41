// What /proc tells of processes.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <set>
#include <string>

namespace lemo::agent {

// When a process was started, in clock ticks since boot; with the boot's id it names a process for
// good, which a pid alone does not. nullopt when there is no such process.
std::optional<uint64_t> StartTicks(pid_t pid);

// Of this boot of the machine.
std::string BootId();

// A gang is known by its leader: its processes are those of the leader's process group and of its
// session, and those that were started with its mark in their environment, wherever they went
// since. "Group" below is a gang of that leader.
std::string GangMark(pid_t leader);

struct GroupUsage {
  int64_t resident_bytes = 0;
  double cpu_seconds = 0;  // user and system, of the processes that live
};
// Of all processes of a group, memory as below; nullopt when there is none.
std::optional<GroupUsage> UsageOfGroup(pid_t group);

// Resident bytes of all processes of a group. Pages that they share count once for each.
int64_t GroupResidentBytes(pid_t group);

// Whether the process computes: it exists and is no zombie, which an init that does not reap
// leaves.
bool Lives(pid_t pid);
// Whether any process of the group does.
bool GroupLives(pid_t group);
// SIGKILL to all of them; whether any lived. One that was just being started may have been missed,
// so it is to be called until none does. Adds those that lived to `killed`, which may be null.
bool KillGang(pid_t leader, std::set<pid_t>* killed = nullptr);
// Takes the ends of those that have become this process's children, but for the leader. Once ended,
// processes that had left the session are known from `killed` alone.
void ReapGang(pid_t leader, const std::set<pid_t>& killed);

// A descriptor that becomes readable when the process ends; -1 when there is no such process.
int OpenPidfd(pid_t pid);

}  // namespace lemo::agent
