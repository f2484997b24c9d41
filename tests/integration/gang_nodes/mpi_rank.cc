// Stands in for lemo-train in a gang: takes the same command line, and does with real MPI what a
// run does with its peers, over numbers instead of tensors.
//
// Its training file says, one `NAME VALUE` a line:
//   steps N        steps of the run; in each an all-reduce
//   pause_ms N     of every step
//   checkpoint N   after every so many steps; 0: none but when stopped
//
// What is summed is exact: a step adds its number to the state, whatever the number of ranks. So a
// run of S steps ends with S (S + 1) / 2, told as the result's train_loss, if and only if each step
// counted once, over all restarts and shapes.
#include <mpi.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <string>

#include "google/protobuf/util/delimited_message_util.h"
#include "lemo/v1/run_event.pb.h"
#include "nlohmann/json.hpp"

namespace {

namespace fs = std::filesystem;

std::atomic<bool> stop_asked{false};
int events_fd = -1;
int sequence = 0;

void Emit(lemo::v1::RunEvent event) {
  event.set_sequence(++sequence);
  std::ostringstream record;
  google::protobuf::util::SerializeDelimitedToOstream(event, &record);
  const std::string bytes = record.str();
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t wrote = ::write(events_fd, bytes.data() + done, bytes.size() - done);
    if (wrote < 0) return;  // nobody listens any more
    done += static_cast<size_t>(wrote);
  }
}

void Phase(const std::string& name, const std::string& detail) {
  lemo::v1::RunEvent event;
  event.mutable_phase()->set_name(name);
  event.mutable_phase()->set_detail(detail);
  Emit(event);
}

int64_t Reduce(int64_t value, MPI_Op op) {
  int64_t sum = 0;
  MPI_Allreduce(&value, &sum, 1, MPI_INT64_T, op, MPI_COMM_WORLD);
  return sum;
}

struct State {
  int64_t step = 0;
  int64_t value = 0;
};

State NewestCheckpoint(const fs::path& out) {
  State newest;
  std::error_code error;
  for (fs::directory_iterator entry(out / "checkpoints", error), end; !error && entry != end;
       entry.increment(error)) {
    State state;
    std::ifstream file(entry->path() / "state");
    if (file >> state.step >> state.value && state.step > newest.step) newest = state;
  }
  return newest;
}

void WriteCheckpoint(const fs::path& out, const State& state, const std::string& reason) {
  const fs::path directory = out / "checkpoints" / ("step-" + std::to_string(state.step));
  fs::create_directories(directory);
  std::ofstream(directory / "state") << state.step << " " << state.value << "\n";
  lemo::v1::RunEvent event;
  event.mutable_checkpoint()->set_step(static_cast<int>(state.step));
  event.mutable_checkpoint()->set_path(directory.string());
  event.mutable_checkpoint()->set_bytes(32);
  event.mutable_checkpoint()->set_reason(reason);
  Emit(event);
}

void Publish(const fs::path& out, const State& state) {
  fs::create_directories(out / "adapter");
  std::ofstream(out / "adapter" / "adapter_model.safetensors") << state.value << "\n";
  lemo::v1::RunEvent event;
  event.mutable_result()->set_train_loss(static_cast<double>(state.value));
  event.mutable_result()->set_steps(static_cast<int>(state.step));
  event.mutable_result()->set_adapter_dir((out / "adapter").string());
  Emit(event);
}

std::map<std::string, int64_t> ReadScript(const std::string& path) {
  std::map<std::string, int64_t> script;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    int64_t value = 0;
    if (words >> name >> value) script[name] = value;
  }
  return script;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc >= 3 && std::string(argv[2]) == "--validate") return 0;
  if (argc != 6 || std::string(argv[4]) != "--events") {
    std::cerr << "unexpected arguments\n";
    return 2;
  }
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGTERM, [](int) { stop_asked = true; });
  events_fd = std::atoi(argv[5] + 3);
  std::ifstream spec_file(argv[1]);
  const nlohmann::json spec = nlohmann::json::parse(spec_file);
  const fs::path out = spec["output"]["dir"].get<std::string>();
  std::map<std::string, int64_t> script = ReadScript(spec["data"]["train"][0]["path"]);

  MPI_Init(nullptr, nullptr);
  int rank = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  const int64_t all = int64_t{size} * (size + 1) / 2;
  if (Reduce(rank + 1, MPI_SUM) != all) {
    std::cerr << "an all-reduce over " << size << " ranks gave another sum" << std::endl;
    return 4;
  }
  std::cerr << "rank " << rank << " of " << size << " in " << out.string() << std::endl;
  fs::create_directories(out);
  if (rank == 0) {
    timespec time;
    ::clock_gettime(CLOCK_REALTIME, &time);
    Phase("reduced", std::to_string(time.tv_sec * 1000 + time.tv_nsec / 1'000'000));
    Phase("world", std::to_string(size));
    std::ofstream(out / "run_identity.json") << "{}\n";
  }
  // As the trainer does: what the lead's machine has counts.
  State state;
  if (rank == 0) state = NewestCheckpoint(out);
  int64_t shared[] = {state.step, state.value};
  MPI_Bcast(shared, 2, MPI_INT64_T, 0, MPI_COMM_WORLD);
  state = {shared[0], shared[1]};
  if (rank == 0 && state.step > 0) {
    lemo::v1::RunEvent event;
    event.mutable_checkpoint()->set_step(static_cast<int>(state.step));
    event.mutable_checkpoint()->set_reason("resumed");
    Emit(event);
  }

  while (state.step < script["steps"]) {
    ::usleep(static_cast<useconds_t>(script["pause_ms"] * 1000));
    ++state.step;
    state.value += Reduce(state.step * (rank + 1), MPI_SUM) / all;
    const bool stop = Reduce(stop_asked ? 1 : 0, MPI_MAX) == 1;
    if (rank == 0) {
      lemo::v1::RunEvent event;
      event.mutable_step()->set_step(static_cast<int>(state.step));
      event.mutable_step()->set_steps(static_cast<int>(script["steps"]));
      Emit(event);
      if (stop || (script["checkpoint"] > 0 && state.step % script["checkpoint"] == 0)) {
        WriteCheckpoint(out, state, stop ? "signal" : "interval");
      }
    }
    if (stop) {
      MPI_Finalize();
      return 128 + SIGTERM;
    }
  }
  if (rank == 0) Publish(out, state);
  MPI_Finalize();
  return 0;
}
