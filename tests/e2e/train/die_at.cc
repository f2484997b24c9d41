// Loaded ahead of a program of several ranks (LD_PRELOAD): kills a rank at an operation that is
// told by what went before it, so that tests can end a rank within backward or an update, which no
// event tells of. LEMO_DIE_AT = "1 MPI_Ireduce_scatter:3 MPI_Iallreduce:1": rank 1, at its first
// all-reduce behind its third reduce-scatter. MPI's functions are taken by its profiling
// interface (MPI standard, 15.2).
#define OMPI_SKIP_MPICXX 1  // bindings that need another library
#include <dlfcn.h>
#include <mpi.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <mutex>
#include <sstream>
#include <string>

namespace {

class Script {
 public:
  Script() {
    const char* script = ::getenv("LEMO_DIE_AT");
    const char* rank = ::getenv("OMPI_COMM_WORLD_RANK");
    if (script == nullptr || rank == nullptr) return;
    legs_.str(script);
    std::string victim;
    if (legs_ >> victim && victim == rank) Next();
  }

  void Pass(const std::string& function) {
    const std::scoped_lock lock(mutex_);
    if (left_ == 0 || function != function_) return;
    if (--left_ == 0 && !Next()) ::kill(::getpid(), SIGKILL);
  }

 private:
  bool Next() {
    std::string leg;
    if (!(legs_ >> leg)) return false;
    const size_t colon = leg.find(':');
    function_ = leg.substr(0, colon);
    left_ = std::stoi(leg.substr(colon + 1));
    return true;
  }

  std::mutex mutex_;
  std::istringstream legs_;
  std::string function_;
  int left_ = 0;
};

void Pass(const char* function) {
  static Script script;
  script.Pass(function);
}

}  // namespace

extern "C" {

int MPI_Iallreduce(const void* send, void* receive, int count, MPI_Datatype type, MPI_Op op,
                   MPI_Comm comm, MPI_Request* request) {
  Pass("MPI_Iallreduce");
  return PMPI_Iallreduce(send, receive, count, type, op, comm, request);
}

int MPI_Ireduce_scatter(const void* send, void* receive, const int counts[], MPI_Datatype type,
                        MPI_Op op, MPI_Comm comm, MPI_Request* request) {
  Pass("MPI_Ireduce_scatter");
  return PMPI_Ireduce_scatter(send, receive, counts, type, op, comm, request);
}

int MPI_Iallgatherv(const void* send, int send_count, MPI_Datatype send_type, void* receive,
                    const int counts[], const int places[], MPI_Datatype type, MPI_Comm comm,
                    MPI_Request* request) {
  Pass("MPI_Iallgatherv");
  return PMPI_Iallgatherv(send, send_count, send_type, receive, counts, places, type, comm,
                          request);
}

int fsync(int fd) {
  Pass("fsync");
  using Function = int (*)(int);
  static const auto next = reinterpret_cast<Function>(::dlsym(RTLD_NEXT, "fsync"));
  return next(fd);
}

}  // extern "C"
