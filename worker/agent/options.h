// The command line of lemo-worker.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace lemo::agent {

struct AgentOptions {
  std::string coordinator;          // HOST:PORT
  std::filesystem::path directory;  // absolute; made if it is not there
  std::string host;                 // what lists show
  std::string version;
  std::filesystem::path train;    // the lemo-train program
  std::filesystem::path program;  // lemo-worker itself
  int cpu_devices = 1;
  bool cuda = true;          // look for CUDA devices
  bool calibrate = false;    // the CPU, if that was not done yet
  int64_t memory_bytes = 0;  // that jobs on the CPU may have; 0: all of the host
  std::vector<std::filesystem::path> model_roots;
  std::filesystem::path bases;   // absolute: frozen weights that jobs have once between them
  int64_t idle_bases_bytes = 0;  // of those that no job uses, to be kept for later ones
  bool cuda_bases = false;       // jobs on a CUDA device share theirs, too
  std::string metrics_listen;    // HOST:PORT of /metrics; empty: none
  // For gangs over several nodes. Without an address to listen on there are none.
  std::string listen;          // HOST:PORT of the NodeService; port 0 takes a free one
  std::string address;         // HOST or HOST:PORT at which others reach it; empty: as `listen`
  std::string mpi_interfaces;  // names or CIDR blocks, with commas
  int mpi_first_port = 0;      // 0: any
  int mpi_last_port = 0;
};

// Either options to run with, or a text to print and a code to leave with (`exit` is set): --help
// and --version with 0 for standard output, a mistake with 2 for standard error.
struct CommandLine {
  AgentOptions options;
  bool exit = false;
  int exit_code = 0;
  std::string text;
};

// `args` without the program's name; `program` is this program's own path, beside which lemo-train
// is looked for.
CommandLine ParseCommandLine(const std::vector<std::string>& args,
                             const std::filesystem::path& program, const std::string& version);

}  // namespace lemo::agent
