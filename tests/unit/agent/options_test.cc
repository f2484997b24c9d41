#include "worker/agent/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/agent/scratch.h"

namespace lemo::agent {
namespace {

using testing::HasSubstr;

CommandLine Parse(const std::vector<std::string>& args) {
  return ParseCommandLine(args, "/opt/lemo/bin/lemo-worker", "1.2.3");
}

TEST(Options, Defaults) {
  const CommandLine command = Parse({"--coordinator", "127.0.0.1:1", "--dir", "/var/lib/lemo"});
  ASSERT_FALSE(command.exit) << command.text;
  EXPECT_EQ(command.options.coordinator, "127.0.0.1:1");
  EXPECT_EQ(command.options.directory, "/var/lib/lemo");
  EXPECT_EQ(command.options.train, "/opt/lemo/bin/lemo-train");
  EXPECT_EQ(command.options.cpu_devices, 1);
  EXPECT_TRUE(command.options.cuda);
  EXPECT_FALSE(command.options.calibrate);
  EXPECT_NE(command.options.host, "");
  EXPECT_EQ(command.options.version, "1.2.3");
}

TEST(Options, All) {
  const Scratch scratch;
  const CommandLine command = Parse({"--coordinator", "h:1", "--dir", "d", "--name", "n", "--train",
                                     "/t", "--cpu-devices", "0", "--cuda", "none", "--calibrate",
                                     "--model-root", scratch.path().string(), "--model-root", "/"});
  ASSERT_FALSE(command.exit) << command.text;
  EXPECT_EQ(command.options.host, "n");
  EXPECT_TRUE(command.options.directory.is_absolute());
  EXPECT_EQ(command.options.train, "/t");
  EXPECT_EQ(command.options.cpu_devices, 0);
  EXPECT_FALSE(command.options.cuda);
  EXPECT_TRUE(command.options.calibrate);
  EXPECT_EQ(command.options.model_roots.size(), 2u);
}

TEST(Options, MemoryAndWhereJobsHaveTheirWeights) {
  AgentOptions options = Parse({"--coordinator", "h:1", "--dir", "d"}).options;
  EXPECT_EQ(options.memory_bytes, 0);
  EXPECT_EQ(options.bases, options.directory / "bases");
  EXPECT_EQ(options.idle_bases_bytes, 0);
  options = Parse({"--coordinator", "h:1", "--dir", "d", "--memory", "6GiB", "--bases",
                   "/dev/shm/b", "--idle-bases", "512MiB"})
                .options;
  EXPECT_EQ(options.memory_bytes, int64_t{6} << 30);
  EXPECT_EQ(options.bases, "/dev/shm/b");
  EXPECT_EQ(options.idle_bases_bytes, int64_t{512} << 20);
  EXPECT_EQ(Parse({"--coordinator", "h:1", "--dir", "d", "--memory", "0"}).exit_code, 2);
  EXPECT_EQ(Parse({"--coordinator", "h:1", "--dir", "d", "--memory", "much"}).exit_code, 2);
}

TEST(Options, FindsTheTrainerOfABuildTree) {
  const Scratch scratch;
  scratch.Write("train/lemo-train", "");
  const auto find = [&] {
    return ParseCommandLine({"--coordinator", "h:1", "--dir", "d"},
                            scratch.path() / "agent" / "lemo-worker", "1")
        .options.train;
  };
  EXPECT_EQ(find(), scratch.path() / "train" / "lemo-train");
  scratch.Write("agent/lemo-train", "");
  EXPECT_EQ(find(), scratch.path() / "agent" / "lemo-train");
}

TEST(Options, MetricsAreServedWhenAskedFor) {
  const std::vector<std::string> must = {"--coordinator", "h:1", "--dir", "d"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), must.begin(), must.end());
    return Parse(more);
  };
  EXPECT_EQ(with({}).options.metrics_listen, "");
  EXPECT_EQ(with({"--metrics-listen", "127.0.0.1:0"}).options.metrics_listen, "127.0.0.1:0");
  const CommandLine open = with({"--metrics-listen", "0.0.0.0:9100"});
  EXPECT_EQ(open.exit_code, 2);
  EXPECT_THAT(open.text, HasSubstr("--insecure-listen"));
  EXPECT_FALSE(with({"--metrics-listen", "0.0.0.0:9100", "--insecure-listen"}).exit);
  EXPECT_EQ(with({"--metrics-listen", "9100"}).exit_code, 2);
}

TEST(Options, OtherWorkersReachItWhereItIsTold) {
  const auto with = [](const std::string& coordinator, std::vector<std::string> more) {
    more.insert(more.begin(), {"--coordinator", coordinator, "--dir", "d"});
    return Parse(more);
  };
  // On one machine without a word; over a network not: a loopback address leads everybody home.
  EXPECT_EQ(with("127.0.0.1:1", {}).options.listen, "127.0.0.1:0");
  EXPECT_EQ(with("127.0.0.1:1", {}).options.mpi_interfaces, "lo");
  EXPECT_EQ(with("h:1", {}).options.listen, "");
  const CommandLine one = with("h:1", {"--listen", "127.0.0.1:7420"});
  ASSERT_FALSE(one.exit) << one.text;
  EXPECT_EQ(one.options.mpi_interfaces, "lo");
  const CommandLine all =
      with("h:1", {"--listen", "0.0.0.0:7420", "--insecure-listen", "--address", "node1",
                   "--mpi-interface", "ib0,eth0", "--mpi-ports", "17000-17099"});
  ASSERT_FALSE(all.exit) << all.text;
  EXPECT_EQ(all.options.address, "node1");
  EXPECT_EQ(all.options.mpi_interfaces, "ib0,eth0");
  EXPECT_EQ(all.options.mpi_first_port, 17000);
  EXPECT_EQ(all.options.mpi_last_port, 17099);
}

TEST(Options, AnEndpointThatCannotBeIsRefused) {
  const auto text = [](std::vector<std::string> more) {
    more.insert(more.begin(), {"--coordinator", "h:1", "--dir", "d"});
    const CommandLine command = Parse(more);
    EXPECT_EQ(command.exit_code, 2);
    return command.text;
  };
  EXPECT_THAT(text({"--listen", "10.1.2.3:7420"}), HasSubstr("--insecure-listen"));
  EXPECT_THAT(text({"--listen", "node1:7420"}), HasSubstr("numeric"));
  EXPECT_THAT(text({"--listen", "0.0.0.0:1", "--insecure-listen"}), HasSubstr("--address"));
  EXPECT_THAT(text({"--listen", "0.0.0.0:1", "--insecure-listen", "--address", "n"}),
              HasSubstr("--mpi-interface"));
  EXPECT_THAT(text({"--listen", "203.0.113.9:1", "--insecure-listen"}),  // nobody's
              HasSubstr("is the address of no interface"));
  EXPECT_THAT(text({"--address", "n"}), HasSubstr("--listen"));
  for (const char* ports : {"17000", "0-5", "9-5", "1-70000", "a-b"}) {
    EXPECT_THAT(text({"--mpi-ports", ports}), HasSubstr("FIRST-LAST"));
  }
}

TEST(Options, MistakesAndHelp) {
  EXPECT_EQ(Parse({}).exit_code, 2);
  EXPECT_THAT(Parse({"--dir", "d"}).text, HasSubstr("--coordinator"));
  EXPECT_EQ(Parse({"--coordinator", "h:1", "--dir", "d", "--cuda", "maybe"}).exit_code, 2);
  EXPECT_EQ(Parse({"--coordinator", "h:1", "--dir", "d", "--cpu-devices", "-1"}).exit_code, 2);
  EXPECT_EQ(Parse({"--help"}).exit_code, 0);
  EXPECT_THAT(Parse({"--help"}).text, HasSubstr("--model-root"));
  EXPECT_THAT(Parse({"--version"}).text, HasSubstr("1.2.3"));
}

}  // namespace
}  // namespace lemo::agent
