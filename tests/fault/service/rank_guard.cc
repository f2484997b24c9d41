// Stands in for lemo-train as the agents' --train: takes a lock that only one rank of a job can
// have, and becomes lemo-train, which then holds it for exactly as long as its process lives.
//
// LEMO_GUARD_DIR: a folder for the locks, with the folders `runs` and `violations`, whose files'
// names say job, milliseconds since boot and process. LEMO_GUARD_TRAIN: the program.
#include <fcntl.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

namespace {

namespace fs = std::filesystem;

// Names of empty files are what is recorded: a full disk takes them too.
void Record(const fs::path& folder, const std::string& name) {
  const int fd = ::open((folder / name).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) std::perror((folder / name).c_str());
  ::close(fd);
}

}  // namespace

int main(int argc, char** argv) {
  const char* directory = std::getenv("LEMO_GUARD_DIR");
  const char* train = std::getenv("LEMO_GUARD_TRAIN");
  if (directory == nullptr || train == nullptr || argc < 2) return 127;
  // AGENT/jobs/{id}/run.json
  const std::string job = fs::path(argv[1]).parent_path().filename();
  timespec now = {};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  const std::string name = job + " " + std::to_string(now.tv_sec * 1000 + now.tv_nsec / 1'000'000) +
                           " " + std::to_string(::getpid());
  // Not close-on-exec: the lock is the open file's, and goes with it.
  const int lock = ::open((fs::path(directory) / (job + ".lock")).c_str(), O_RDWR | O_CREAT, 0644);
  if (lock < 0 || ::flock(lock, LOCK_EX | LOCK_NB) != 0) {
    Record(fs::path(directory) / "violations", name);
  }
  Record(fs::path(directory) / "runs", name);
  ::execv(train, argv);
  return 127;
}
