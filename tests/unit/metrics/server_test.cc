#include "common/metrics_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "tests/support/golden.h"
#include "tests/support/http_get.h"

namespace lemo::metrics {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const Family kSize = {Type::kGauge, "lemo_size_bytes", "Size."};

class ServerTest : public ::testing::Test {
 protected:
  ServerTest() {
    directory_ = fs::path(::testing::TempDir()) / ("lemo_metrics_" + std::to_string(::getpid()));
    fs::remove_all(directory_);
    fs::create_directories(directory_);
    registry_->AddSource([](Samples* samples) { samples->Set(kSize, 7); });
  }
  ~ServerTest() override { fs::remove_all(directory_); }

  auto Start(const std::string& listen) {
    return Server::Start(listen, registry_, directory_ / "metrics_address");
  }

  fs::path directory_;
  const std::shared_ptr<Registry> registry_ = std::make_shared<Registry>(Families{&kSize});
};

TEST(CheckListen, WantsANumericAddressOfThisMachine) {
  for (const char* good : {"", "127.0.0.1:0", "127.1.2.3:9100", "localhost:9100", "[::1]:9100"}) {
    EXPECT_TRUE(CheckListen(good, false).ok()) << good;
  }
  for (const char* odd :
       {"9100", ":9100", "+9100", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1",
        "127.0.0.1:1,0.0.0.0:2", "127.0.0.1:80s", "host:9100", "127.0.0.1.evil:1", "[::1:9100"}) {
    const absl::Status status = CheckListen(odd, true);
    EXPECT_THAT(std::string(status.message()), HasSubstr("is not HOST:PORT")) << odd;
  }
  for (const char* open : {"0.0.0.0:9100", "10.0.0.1:9100", "[::]:9100"}) {
    EXPECT_THAT(std::string(CheckListen(open, false).message()), HasSubstr("--insecure-listen"));
    EXPECT_TRUE(CheckListen(open, true).ok()) << open;
  }
}

TEST_F(ServerTest, ServesTheRegistryOnAFreePortThatItWritesDown) {
  const auto server = Start("localhost:0");
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string address = (*server)->address();
  EXPECT_EQ(lemo::testing::ReadText(directory_ / "metrics_address"), address + "\n");
  const auto answer = lemo::testing::HttpGet(address, "/metrics");
  EXPECT_EQ(answer.status, 200);
  EXPECT_THAT(answer.body, HasSubstr("lemo_size_bytes 7\n"));
  EXPECT_EQ(lemo::testing::HttpGet(address, "/etc/passwd").status, 404);
}

// All that is served is declared.
TEST_F(ServerTest, DeclaresWhatItAddsByItself) {
  const auto server = Start("127.0.0.1:0");
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string body = lemo::testing::HttpGet((*server)->address(), "/metrics").body;
  size_t added = 0;
  for (size_t at = 0; (at = body.find("# TYPE ", at)) != std::string::npos; ++at) {
    const std::string rest = body.substr(at + 7, body.find('\n', at) - at - 7);
    const std::string name = rest.substr(0, rest.find(' '));
    if (name == kSize.name) continue;
    ++added;
    const Families own = Server::OwnFamilies();
    EXPECT_TRUE(std::any_of(own.begin(), own.end(), [&](const Family* family) {
      return family->name == name;
    })) << name;
  }
  EXPECT_EQ(added, Server::OwnFamilies().size());
}

TEST_F(ServerTest, AnAddressThatIsTakenIsRefused) {
  const auto first = Start("127.0.0.1:0");
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = Start((*first)->address());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr("--metrics-listen: cannot listen on " + (*first)->address()));
}

TEST_F(ServerTest, WithoutAnAddressNothingIsServedAndNoOldOneIsLeft) {
  ASSERT_TRUE(Start("127.0.0.1:0").ok());
  ASSERT_TRUE(fs::exists(directory_ / "metrics_address"));
  const auto none = Start("");
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(*none, nullptr);
  EXPECT_FALSE(fs::exists(directory_ / "metrics_address"));
}

}  // namespace
}  // namespace lemo::metrics
