// Nodes with addresses of their own, on this machine.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace lemo::agent {

// This process in a network namespace of its own, with a bridge; and nodes, each a namespace behind
// a link to it, 10.123.0.N. All of it goes when the processes do. To be made before the process has
// threads.
class Network {
 public:
  // Empty, or why there can be none here.
  static std::string Enter();

  Network() = default;
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  // Of this process's side.
  static constexpr char kAddress[] = "10.123.0.1";
  // Makes node `number`, from 2 on, and answers its address.
  std::string AddNode(int number);
  // A child of this process that runs `command` on the node; 0: on this process's side.
  pid_t Spawn(int number, const std::vector<std::string>& command, const std::string& log);
  // Cuts the node off, and takes that back: what is sent is lost, nobody is told.
  void Cut(int number);
  void Join(int number);

 private:
  std::map<int, pid_t> holders_;  // processes that keep the namespaces
};

}  // namespace lemo::agent
