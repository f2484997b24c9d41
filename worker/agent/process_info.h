// What /proc tells of processes.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

namespace lemo::agent {

// When a process was started, in clock ticks since boot; with the boot's id it names a process for
// good, which a pid alone does not. nullopt when there is no such process.
std::optional<uint64_t> StartTicks(pid_t pid);

// Of this boot of the machine.
std::string BootId();

// Resident bytes of all processes of a group. Pages that they share count once for each.
int64_t GroupResidentBytes(pid_t group);

// Whether the process computes: it exists and is no zombie, which an init that does not reap
// leaves.
bool Lives(pid_t pid);
// Whether any process of the group does.
bool GroupLives(pid_t group);

// A descriptor that becomes readable when the process ends; -1 when there is no such process.
int OpenPidfd(pid_t pid);

}  // namespace lemo::agent
