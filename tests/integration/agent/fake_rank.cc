// Stands in for lemo-train: takes the same command line and does what its first training file says,
// one command a line.
//
//   step N              a step event
//   steps A B           those from A to B
//   selection N         a selection event of N blocks
//   result              a result event
//   publish             an adapter and a report in the output directory
//   stderr TEXT         a line on the error stream
//   bytes N             a file of N bytes in the output directory
//   error CODE TEXT     an error event that blames the training file, and exit
//   hold                until SIGTERM, then a checkpoint event and exit 128 + SIGTERM
//   hold-once           the same on the first attempt; a later one goes on
//   stay                for ever, whatever SIGTERM says
//   child               a child that ignores SIGTERM and stays; an event tells its pid
//   pid                 an event that tells the pid
//   spec                an event with the run spec in it
//   garbage             bytes that are no event
//   raise N             the signal
//   exit N
//   rank N COMMAND...   the command, in that rank of several only
//   who                 a line on the error stream: rank, ranks, device, what descriptor 3 is
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

#include "google/protobuf/util/delimited_message_util.h"
#include "lemo/v1/run_event.pb.h"
#include "nlohmann/json.hpp"

namespace {

int events_fd = -1;
int sequence = 0;

void Write(const std::string& bytes) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t wrote = ::write(events_fd, bytes.data() + done, bytes.size() - done);
    if (wrote < 0) return;  // nobody listens any more
    done += static_cast<size_t>(wrote);
  }
}

void Emit(lemo::v1::RunEvent event) {
  event.set_sequence(++sequence);
  std::ostringstream record;
  google::protobuf::util::SerializeDelimitedToOstream(event, &record);
  Write(record.str());
}

void Step(int step) {
  lemo::v1::RunEvent event;
  event.mutable_step()->set_step(step);
  Emit(event);
}

void Phase(const std::string& name, const std::string& detail) {
  lemo::v1::RunEvent event;
  event.mutable_phase()->set_name(name);
  event.mutable_phase()->set_detail(detail);
  Emit(event);
}

[[noreturn]] void Stay() {
  for (;;) ::pause();
}

void Hold(const std::string& out) {
  sigset_t term;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  int signal = 0;
  sigwait(&term, &signal);
  std::ofstream(out + "/checkpoint") << "state";
  lemo::v1::RunEvent event;
  event.mutable_checkpoint()->set_path(out + "/checkpoint");
  Emit(event);
  if (const char* rank = ::getenv("OMPI_COMM_WORLD_RANK"); rank != nullptr) {
    // Whoever passes signals on must not do so twice; and one rank may be done long before another.
    const int milliseconds = 100 + 300 * std::atoi(rank);
    const timespec moment{milliseconds / 1000, milliseconds % 1000 * 1'000'000};
    std::cerr << (sigtimedwait(&term, nullptr, &moment) == SIGTERM ? "asked again" : "asked once")
              << std::endl;
  }
  std::exit(128 + SIGTERM);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6 || std::string(argv[2]) != "--resume" || std::string(argv[4]) != "--events") {
    std::cerr << "unexpected arguments\n";
    return 2;
  }
  // Blocked from the start, so that none is lost before `hold` waits for it.
  sigset_t term;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  sigprocmask(SIG_BLOCK, &term, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  events_fd = std::stoi(std::string(argv[5]).substr(3));
  std::ifstream spec_file(argv[1]);
  const nlohmann::json spec = nlohmann::json::parse(spec_file);
  const std::string data = spec["data"]["train"][0]["path"];
  const std::string out = spec["output"]["dir"];
  std::filesystem::create_directories(out);
  std::ifstream script(data);
  const char* rank = ::getenv("OMPI_COMM_WORLD_RANK");
  for (std::string line; std::getline(script, line);) {
    std::istringstream words(line);
    std::string command;
    int number = 0;
    words >> command;
    if (command == "rank") {
      words >> number >> command;
      if (rank == nullptr || std::to_string(number) != rank) continue;
      line = line.substr(line.find(command));
    }
    if (command == "step") {
      words >> number;
      Step(number);
    } else if (command == "steps") {
      int last = 0;
      for (words >> number >> last; number <= last; ++number) Step(number);
    } else if (command == "selection") {
      words >> number;
      lemo::v1::RunEvent event;
      event.mutable_selection()->add_attention(std::string(static_cast<size_t>(number), 1));
      Emit(event);
    } else if (command == "result") {
      lemo::v1::RunEvent event;
      event.mutable_result()->set_adapter_dir(out + "/adapter");
      Emit(event);
    } else if (command == "publish") {
      std::filesystem::create_directories(out + "/adapter");
      std::ofstream(out + "/adapter/adapter_model.safetensors") << std::string(600'000, 'w');
      std::ofstream(out + "/adapter/empty.txt");
      std::ofstream(out + "/report.json") << "{}";
    } else if (command == "stderr") {
      std::cerr << line.substr(7) << std::endl;
    } else if (command == "bytes") {
      words >> number;
      std::ofstream(out + "/bytes") << std::string(static_cast<size_t>(number), 'x') << std::flush;
    } else if (command == "error") {
      std::string text;
      words >> number >> text;
      lemo::v1::RunEvent event;
      event.mutable_error()->set_message(text + " in " + data);
      event.mutable_error()->set_advice("do otherwise");
      lemo::v1::Violation& violation = *event.mutable_error()->add_violations();
      violation.set_field("data.train[0]");
      violation.set_file(data);
      violation.set_line(3);
      violation.set_reason("is wrong");
      Emit(event);
      return number;
    } else if (command == "hold") {
      Hold(out);
    } else if (command == "hold-once") {
      if (!std::filesystem::exists(out + "/checkpoint")) Hold(out);
    } else if (command == "stay") {
      Stay();
    } else if (command == "child") {
      const pid_t child = ::fork();
      if (child == 0) {
        ::close(events_fd);
        Stay();
      }
      Phase("child", std::to_string(child));
    } else if (command == "who") {
      struct stat info = {};
      ::fstat(events_fd, &info);
      std::cerr << (rank == nullptr ? "none" : rank) << " of " << ::getenv("OMPI_COMM_WORLD_SIZE")
                << " on " << spec["device"].get<std::string>() << ", events to a "
                << (S_ISFIFO(info.st_mode) ? "pipe" : "file") << std::endl;
    } else if (command == "pid") {
      Phase("pid", std::to_string(::getpid()));
    } else if (command == "spec") {
      Phase("spec", spec.dump());
    } else if (command == "garbage") {
      Write(std::string(64, '\xff'));
    } else if (command == "raise") {
      words >> number;
      ::raise(number);
    } else if (command == "exit") {
      words >> number;
      return number;
    }
  }
  return 0;
}
