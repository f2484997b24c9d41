// The real `lemo` as a child process, in a directory and with a home of its own.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/integration/cli/fake_service.h"

namespace lemo::cli {

struct Outcome {
  int code = -1;  // 128 + n when signal n ended it
  std::string out;
  std::string err;
};

// A running `lemo`. The destructor kills and reaps it.
class Lemo {
 public:
  // `program` is another copy of lemo, or "" for the one that was built.
  Lemo(const std::filesystem::path& directory, const std::string& coordinator,
       const std::vector<std::string>& args,
       const std::map<std::string, std::string>& environment = {}, const std::string& program = "");
  ~Lemo();
  Lemo(const Lemo&) = delete;
  Lemo& operator=(const Lemo&) = delete;

  void Signal(int signal);
  // Fails the test, and kills it, when it has not ended after a minute.
  Outcome Wait();
  // What it has printed so far.
  std::string Out() const;
  // Waits until its standard output has `text`; false when it ends, or a minute passes, before.
  bool WaitForOut(const std::string& text);

 private:
  bool Ended();

  const std::filesystem::path directory_;
  std::string stem_;
  pid_t pid_ = 0;
  bool ended_ = false;
  int status_ = 0;
};

// A fake service, and an empty directory to run in.
class CliTest : public testing::Test {
 protected:
  CliTest();
  ~CliTest() override;

  Outcome Run(const std::vector<std::string>& args) {
    return Lemo(directory_, server_->address(), args).Wait();
  }
  std::filesystem::path Write(const std::string& name, const std::string& text);
  std::string Read(const std::filesystem::path& path) const;

  // jobs/a, succeeded, with these artifacts, told truly.
  void AddSucceededJob(const std::map<std::string, std::string>& artifacts);

  std::filesystem::path directory_;
  FakeState state_;
  std::unique_ptr<FakeServer> server_;
};

}  // namespace lemo::cli
