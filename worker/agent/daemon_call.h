// `lemo-worker exec`: what mpirun calls in place of ssh.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace lemo::agent {

// `args` are HOST COMMAND...: a name of HostOf and the command line that a remote shell would be
// given. Its `orted` is started by the agent of that node (NodeService), its output is written to
// ours, and it lives as long as this call: it is ended when this process ends, which the kernel
// sees to when mpirun has died, or when nothing is heard of this process. Which agent, and what to
// show it, is in the file (GangFile) that LEMO_GANG_FILE names.
//
// Answers the daemon's exit code; 255, as ssh does, when it could not be started or the node was
// lost. What was lost is also noted in LostNote, since mpirun only says that a daemon is gone.
int RunDaemonCall(const std::vector<std::string>& args);

// Beside the gang's file: why the node of that name was lost.
std::filesystem::path LostNote(const std::filesystem::path& gang_file, const std::string& host);

// The arguments of `orted` in a command line as mpirun hands it over, with the quotes for a shell
// taken off. Empty when there is no orted in it.
std::vector<std::string> DaemonArguments(const std::vector<std::string>& words);

}  // namespace lemo::agent
