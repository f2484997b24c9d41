// What a test has started, found by a mark that all of it inherits.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace lemo::agent {

struct Found {
  pid_t pid = 0;
  std::string program;  // its file's name
  std::string command;
  int rank = -1;        // OMPI_COMM_WORLD_RANK, if it has one
  std::string network;  // its namespace
};

// Puts the mark into this process's environment.
void MarkProcesses(const std::string& value);
// Living processes of gangs: mpirun, its daemons, `lemo-worker exec` and `rank`, ranks. Not agents
// and their watchdogs.
std::vector<Found> GangProcesses();
struct Listener {
  std::string command;
  std::string address;  // as /proc/net/tcp has it
  int port = 0;
};
// Of those processes, but for what only listens on loopback.
std::vector<Listener> PortsListenedOn(const std::vector<Found>& processes);
// For messages.
std::string Names(const std::vector<Found>& processes);

}  // namespace lemo::agent
