// Stores at real servers: Debian's redis-server, and Valkey as one node and as a cluster of three masters.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <set>

#include "runtime/store/redis_client_internal.h"
#include "runtime/store/redis_url_internal.h"
#include "tests/unit/redis_servers.h"
#include "tests/unit/store_conformance.h"

namespace ds {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::take;

/// One for the whole program, started by the first test that wants it; it ends with the program.
RedisServer* shared_server(const std::string& program) {
  static std::map<std::string, std::unique_ptr<RedisServer>> servers;
  auto& server = servers[program];
  if (server == nullptr) server = std::make_unique<RedisServer>(program);
  return server.get();
}
RedisCluster* shared_cluster(const std::string& program) {
  static std::map<std::string, std::unique_ptr<RedisCluster>> clusters;
  auto& cluster = clusters[program];
  if (cluster == nullptr) cluster = std::make_unique<RedisCluster>(program);
  return cluster.get();
}

class RedisPlace final : public StorePlace {
 public:
  RedisPlace(std::vector<RedisServer*> servers, std::string more) : servers_(std::move(servers)) {
    static int count = 0;
    prefix_ = fmt::format("t{}[*]:", ++count);  // letters that mean something in patterns
    url_ = servers_[0]->url("", "?prefix=" + prefix_ + more);
  }
  ~RedisPlace() override {
    for (RedisServer* server : servers_) server->say({"FLUSHALL"});
  }
  std::string url() const override { return url_; }
  std::vector<std::string> left() const override {
    std::vector<std::string> keys;
    for (RedisServer* server : servers_)
      for (const Reply& key : server->say({"KEYS", "*"}).list)
        if (key.text.starts_with(prefix_ + "{")) keys.push_back(key.text);
    std::sort(keys.begin(), keys.end());
    return keys;
  }

 private:
  std::vector<RedisServer*> servers_;
  std::string prefix_, url_;
};

StoreKind one_server(const std::string& name, std::string (*program)(), const std::string& more = "") {
  return {name, [=](std::string& why) -> std::unique_ptr<StorePlace> {
            why = "there is no " + name + " server here; ./dev deps brings one";
            if (program().empty()) return nullptr;
            return std::make_unique<RedisPlace>(std::vector{shared_server(program())}, more);
          }};
}
StoreKind cluster(const std::string& name, std::string (*program)()) {
  return {name, [=](std::string& why) -> std::unique_ptr<StorePlace> {
            why = "there is no Valkey server here; ./dev deps brings one";
            if (program().empty()) return nullptr;
            RedisCluster* c = shared_cluster(program());
            return std::make_unique<RedisPlace>(std::vector{&c->node(0), &c->node(1), &c->node(2)}, "");
          }};
}

const auto kKinds = ::testing::Values(
    one_server("redis", redis_program), one_server("redis_small_parts", redis_program, "&part=4096"),
    one_server("redis_ttl", redis_program, "&ttl=3600"), one_server("valkey", valkey_program),
    cluster("valkey_cluster", valkey_program));
const auto kName = [](const auto& info) { return info.param.name; };
INSTANTIATE_TEST_SUITE_P(Redis, StoreConformance, kKinds, kName);
INSTANTIATE_TEST_SUITE_P(Redis, StoreEntries, kKinds, kName);
INSTANTIATE_TEST_SUITE_P(Redis, LiveEntries, kKinds, kName);
INSTANTIATE_TEST_SUITE_P(Redis, HostileEntries, kKinds, kName);

// --- URLs
// ----------------------------------------------------------------------------------------------------

TEST(RedisUrl, SaysWhereAndHow) {
  const RedisOptions o = take(parse_redis_url(
      "rediss://me%40home:p%3Aa%2F%25@h.example:7000/3?ttl=60&timeout=0.5&ca=/etc/ca.pem&prefix=x:"));
  EXPECT_EQ(o.user, "me@home");
  EXPECT_EQ(o.password, "p:a/%");
  EXPECT_THAT(o.hosts, ElementsAre(RedisHost{"h.example", 7000}));
  EXPECT_EQ(o.db, 3);
  EXPECT_EQ(o.ttl_s, 60);
  EXPECT_EQ(o.timeout_s, 0.5);
  EXPECT_EQ(o.ca, "/etc/ca.pem");
  EXPECT_EQ(o.prefix, "x:");
  EXPECT_TRUE(o.tls);
  EXPECT_EQ(o.url(), "rediss://***@h.example:7000/3");
  EXPECT_EQ(take(parse_redis_url("redis://h")).url(), "redis://h:6379");
  EXPECT_EQ(take(parse_redis_url("redis://[::1]:7/")).url(), "redis://[::1]:7");
  EXPECT_EQ(take(parse_redis_url("redis://a:1,b:2")).url(), "redis://a:1,b:2");
  // A password may hold anything; only the last '@' is the host's.
  EXPECT_EQ(take(parse_redis_url("redis://:a@b:c/d?e@h")).password, "a@b:c/d?e");
}

TEST(RedisUrl, NothingOfAPasswordIsShown) {
  for (const char* bad :
       {"redis:u:hunter2@h", "redis:/hunter2@h", "redis://u:hunter2%@h", "redis://u:hunter2@h:0",
        "redis://u:hunter2@h:hunter2", "redis://u:hunter2@", "redis://u:hunter2@h/hunter2",
        "redis://u:hunter2@h?hunter2", "redis://u:hunter2@h?ttl=hunter2", "redis://u:hunter2@h?ca=/x",
        "redis://hunter2:6379x", "redis://hunter2@h", "rediss://u:hunter2@h?cert=x", "u:hunter2@h",
        "hunter2@h:1", "rediz://u:hunter2@h", "redis://u:hunter2@h?prefix={}"}) {
    auto store = open_store(bad);
    ASSERT_FALSE(store.ok()) << bad;
    EXPECT_EQ(store.status().code(), Code::kInvalidArgument);
    EXPECT_THAT(store.status().message(), Not(HasSubstr("hunter2"))) << bad;
  }
}

TEST(RedisUrl, APasswordMayBeInTheEnvironment) {
  setenv("DROIDSPEAK_REDIS_PASSWORD", "hunter2", 1);
  const RedisOptions o = take(parse_redis_url("redis://me@h"));
  const RedisOptions both = take(parse_redis_url("redis://me:other@h"));
  unsetenv("DROIDSPEAK_REDIS_PASSWORD");
  EXPECT_EQ(o.password, "hunter2");
  EXPECT_EQ(both.password, "other");
  EXPECT_EQ(o.url(), "redis://***@h:6379");
}

// Of the cluster's specification, and of a server.
TEST(RedisClient, SlotsAreTheClusters) {
  EXPECT_EQ(key_slot("123456789"), 0x31c3u % 16384);
  EXPECT_EQ(key_slot("a{foo}b"), key_slot("foo"));
  EXPECT_EQ(key_slot("foo{}{bar}"), key_slot("foo{}{bar}"));
  EXPECT_EQ(key_slot("foo{{bar}}zap"), key_slot("{bar"));
}

// --- one server
// ----------------------------------------------------------------------------------------------

class OneServer : public ::testing::TestWithParam<std::string (*)()> {
 protected:
  void SetUp() override {
    if (GetParam()().empty()) GTEST_SKIP() << "there is no such server here; ./dev deps brings one";
  }
  std::unique_ptr<RedisServer> start(std::vector<std::string> options = {}) {
    return std::make_unique<RedisServer>(GetParam()(), std::move(options));
  }
  static std::unique_ptr<Store> open(const std::string& url) { return take(open_store(url)); }
  static std::vector<std::string> keys(RedisServer& server, const std::string& password = "") {
    std::vector<std::string> keys;
    for (const Reply& key : server.say({"KEYS", "*"}, password).list) keys.push_back(key.text);
    std::sort(keys.begin(), keys.end());
    return keys;
  }
};
INSTANTIATE_TEST_SUITE_P(Servers, OneServer, ::testing::Values(redis_program, valkey_program),
                         [](const auto& info) { return info.param == redis_program ? "redis" : "valkey"; });

TEST_P(OneServer, OneLookUpFindsAndOpens) {
  auto server = start();
  auto store = open(server->url());
  ASSERT_TRUE(put_text(*store, "k", pattern(50'000)).ok());
  auto reader = open(server->url());
  const std::string key[] = {"k"};
  const Found found = take(reader->find(key, {}));
  server->stop();  // what comes from now on came with the look-up
  auto object = take(reader->open(*found.keys[0]));
  EXPECT_EQ(take(read_text(*object, 0, 50'000)) == pattern(50'000), true);
  server->go_on();
}

// A byte range costs its bytes, and the server says so.
TEST_P(OneServer, ARangeCostsItsBytes) {
  auto server = start();
  auto store = open(server->url());
  ASSERT_TRUE(put_text(*store, "k", pattern(8'000'000)).ok());
  auto object = take(store->open("k"));
  const auto sent = [&] {
    const std::string info = server->say({"INFO", "stats"}).text;
    return std::stoll(info.substr(info.find("total_net_output_bytes:") + 23));
  };
  const int64_t before = sent();
  EXPECT_EQ(take(read_text(*object, 3'500'000, 200'000)) == pattern(8'000'000).substr(3'500'000, 200'000),
            true);
  EXPECT_LT(sent() - before, 200'000 + 10'000);
}

TEST_P(OneServer, AnEvictedPartIsAMissAndNoHole) {
  auto server = start();
  auto store = open(server->url());
  ASSERT_TRUE(put_text(*store, "k", pattern(5'000'000)).ok());
  std::vector<std::string> parts;
  for (const std::string& key : keys(*server))
    if (key.starts_with("ds:{k}:") && key.ends_with(":2")) parts.push_back(key);
  ASSERT_EQ(parts.size(), 1u);
  auto object = take(store->open("k"));
  server->say({"DEL", parts[0]});
  for (auto [from, bytes] :
       {std::pair{0, 5'000'000}, std::pair{2'200'000, 100}, std::pair{65536 + 2 * 1048576, 1048576}}) {
    auto text = read_text(*object, from, static_cast<size_t>(bytes));
    EXPECT_EQ(text.status().code(), Code::kNotFound);
    EXPECT_THAT(text.status().message(), HasSubstr("part 2 of 'ds:{k}' is gone from the server"));
  }
  EXPECT_EQ(take(read_text(*object, 0, 2'000'000)) == pattern(2'000'000), true) << "others are there";
  // Another's value in its place.
  server->say({"SET", parts[0], "short"});
  EXPECT_EQ(read_text(*object, 0, 5'000'000).status().code(), Code::kCorrupt);
  EXPECT_EQ(read_text(*object, 0, 2'000'000).status().code(), Code::kOk);
  server->say({"DEL", parts[0]});
  server->say({"RPUSH", parts[0], "a list"});
  EXPECT_EQ(read_text(*object, 0, 5'000'000).status().code(), Code::kCorrupt);
  // The manifest: as if it had never been.
  server->say({"DEL", "ds:{k}"});
  EXPECT_EQ(store->open("k").status().code(), Code::kNotFound);
}

TEST_P(OneServer, NamesOfTheEvictedDoNotHideOthers) {
  auto server = start();
  auto store = open(server->url());
  const std::string names[] = {std::string(32, 'a')};
  for (const char* key : {"old", "e1", "e2", "e3", "e4"}) ASSERT_TRUE(put_text(*store, key, "x", names).ok());
  for (const char* key : {"ds:{e1}", "ds:{e2}", "ds:{e3}", "ds:{e4}"}) server->say({"DEL", key});
  bool opened = false;
  for (int turn = 0; turn < 2; ++turn) {
    const Found found = take(store->find({}, names));
    for (const ObjectRef& ref : found.names[0]) opened = store->open(ref).ok() || opened;
  }
  EXPECT_TRUE(opened);
}

TEST_P(OneServer, ObjectsLiveAsLongAsTheUrlSays) {
  auto server = start();
  auto store = open(server->url("", "?ttl=1000&grace=100"));
  const std::string names[] = {std::string(32, 'a')};
  ASSERT_TRUE(put_text(*store, "k", pattern(3'000'000), names).ok());
  int parts = 0;
  for (const std::string& key : keys(*server)) {
    const int64_t ttl = server->say({"TTL", key}).integer;
    EXPECT_GT(ttl, 0) << key;
    EXPECT_LE(ttl, key == "ds:{k}" ? 1000 : 1100);
    parts += key.starts_with("ds:{k}:") && ttl > 1000;
  }
  EXPECT_EQ(parts, 4) << "three parts and the names, longer than the manifest";
  // One that has no end keeps the name alive, whichever comes first.
  for (const char* order : {"forever last", "forever first"}) {
    if (std::string_view(order) == "forever first") server->say({"DEL", "ds:name:" + names[0]});
    auto forever = open(server->url());
    ASSERT_TRUE(put_text(*forever, "f", "x", names).ok());
    if (std::string_view(order) == "forever first") {
      ASSERT_TRUE(put_text(*store, "k", "x", names).ok());
    }
    EXPECT_EQ(server->say({"TTL", "ds:name:" + names[0]}).integer, -1) << order;
    EXPECT_EQ(server->say({"TTL", "ds:{f}"}).integer, -1);
  }
}

TEST_P(OneServer, AKilledWriterLeavesNothingThatStays) {
  auto server = start();
  const std::string url = server->url("", "?lease=2");
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    auto store = open_store(url);
    (void)(*store)->put("k", [&](const Store::Sink& sink) -> Status {
      for (int i = 0; i < 3; ++i) DS_TRY(sink(bytes_of(pattern(9'000'000))));
      if (write(ready[1], "x", 1) != 1) _exit(1);
      pause();
      return ok_status();
    });
    _exit(0);
  }
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  close(ready[0]);
  close(ready[1]);
  EXPECT_GT(keys(*server).size(), 10u) << "it was in the middle of it";
  kill(child, SIGKILL);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  auto store = open(url);
  EXPECT_EQ(store->open("k").status().code(), Code::kNotFound);
  EXPECT_TRUE(take(store->list()).empty());
  EXPECT_TRUE(RedisServer::soon([&] { return keys(*server).empty(); }));
}

TEST_P(OneServer, ASlowWritersPartsStay) {
  auto server = start();
  auto store = open(server->url("", "?lease=1"));
  Status put = store->put("k", [&](const Store::Sink& sink) -> Status {
    for (int i = 0; i < 8; ++i) {
      DS_TRY(sink(bytes_of(pattern(9'000'000))));
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
    }
    return ok_status();
  });
  ASSERT_TRUE(put.ok()) << put.message();
  std::string whole;
  for (int i = 0; i < 8; ++i) whole += pattern(9'000'000);
  EXPECT_EQ(take(get_text(*store, "k")) == whole, true);
}

TEST_P(OneServer, WhatIsReplacedOrRemovedGoesAfterTheGrace) {
  auto server = start();
  auto store = open(server->url("", "?grace=1"));
  const std::string names[] = {std::string(32, 'a')};
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(put_text(*store, "k", pattern(3'000'000, i), names).ok());
  EXPECT_TRUE(RedisServer::soon([&] { return keys(*server).size() == 3 + 4; })) << "names, manifest, used";
  auto object = take(store->open("k"));
  ASSERT_TRUE(store->remove("k").ok());
  EXPECT_TRUE(RedisServer::soon([&] {
    auto left = keys(*server);
    std::erase_if(left, [](auto& key) { return key.ends_with(":readers"); });
    return left.empty();
  }));
  EXPECT_EQ(read_text(*object, 1'000'000, 5).status().code(), Code::kNotFound);
}

// A process that was killed between taking a manifest away and its parts.
TEST_P(OneServer, PartsThatNobodyHasAreLetGo) {
  auto server = start();
  auto store = open(server->url("", "?grace=1"));
  const std::string names[] = {std::string(32, 'a')};
  ASSERT_TRUE(put_text(*store, "k", pattern(3'000'000), names).ok());
  ASSERT_TRUE(put_text(*store, "l", pattern(3'000'000), names).ok());
  server->say({"DEL", "ds:{k}"});
  EXPECT_EQ(take(store->list()).size(), 1u);
  EXPECT_TRUE(RedisServer::soon([&] {
    const auto left = keys(*server);
    return std::none_of(left.begin(), left.end(),
                        [](auto& key) { return key.starts_with("ds:{k}:") && !key.ends_with("used"); });
  }));
  EXPECT_EQ(take(get_text(*store, "l")) == pattern(3'000'000), true);
}

TEST_P(OneServer, AFullServerIsSaidToBeAndNothingIsLeft) {
  auto server = start({"--maxmemory", "20mb", "--maxmemory-policy", "noeviction"});
  auto store = open(server->url());
  ASSERT_TRUE(put_text(*store, "k", "old").ok());
  const auto before = keys(*server);
  Status put = put_text(*store, "k", pattern(40'000'000));
  EXPECT_EQ(put.code(), Code::kExhausted) << put.message();
  EXPECT_THAT(put.message(), AllOf(HasSubstr("writing 'k'"), HasSubstr("OOM"), HasSubstr("maxmemory")));
  EXPECT_EQ(keys(*server), before);
  EXPECT_EQ(take(get_text(*store, "k")), "old");
  ASSERT_TRUE(put_text(*store, "l", pattern(5'000'000)).ok()) << "what was written is given back";
}

TEST_P(OneServer, AServerThatEvictsMakesMissesAndNoHoles) {
  auto server = start({"--maxmemory", "20mb", "--maxmemory-policy", "allkeys-lru"});
  auto store = open(server->url());
  for (int i = 0; i < 12; ++i) {
    Status put = put_text(*store, fmt::format("k{}", i), pattern(4'000'000, i));
    EXPECT_TRUE(put.ok() || put.code() == Code::kExhausted) << put.message();
  }
  int misses = 0;
  for (int i = 0; i < 12; ++i) {
    auto text = get_text(*store, fmt::format("k{}", i));
    EXPECT_EQ(text.ok() ? *text == pattern(4'000'000, i) : text.status().code() == Code::kNotFound, true)
        << text.status().message();
    misses += !text.ok();
  }
  EXPECT_GT(misses, 0);
}

TEST_P(OneServer, WhoMayNotSaysWhy) {
  auto server = start({"--requirepass", "right"});
  const auto message = [&](const std::string& who) {
    Status status = open(server->url(who))->open("k").status();
    EXPECT_EQ(status.code(), Code::kIo);
    EXPECT_THAT(status.message(), AllOf(HasSubstr(fmt::format("127.0.0.1:{}", server->port())),
                                        Not(HasSubstr("hunter2")), Not(HasSubstr("alice"))));
    return status.message();
  };
  EXPECT_THAT(message(""), HasSubstr("NOAUTH"));
  EXPECT_THAT(message(":hunter2@"), HasSubstr("WRONGPASS"));
  EXPECT_THAT(message("alice:hunter2@"), HasSubstr("WRONGPASS"));
  EXPECT_EQ(open(server->url(":right@"))->open("k").status().code(), Code::kNotFound);
  EXPECT_EQ(open(server->url("default:right@"))->open("k").status().code(), Code::kNotFound);
  EXPECT_THAT(open(server->url(":right@"))->open("k").status().message(), Not(HasSubstr("right@")));
  // A user who may read only, and one who may nothing. Neither may ask for slots.
  auto writer = open(server->url(":right@"));
  ASSERT_TRUE(put_text(*writer, "k", pattern(3'000'000)).ok());
  const auto user = [&](const std::string& name, std::vector<std::string> rights) {
    std::vector<std::string> words{"ACL", "SETUSER", name, "on", ">hunter2"};
    words.insert(words.end(), rights.begin(), rights.end());
    EXPECT_EQ(server->say(words, "right").text, "OK");
    return open(server->url(name + ":hunter2@"));
  };
  auto reader = user("alice", {"~ds:*", "+@read", "-keys"});
  auto object = take(reader->open("k"));
  EXPECT_EQ(take(read_text(*object, 0, 3'000'000)) == pattern(3'000'000), true);
  const std::string key[] = {"k"};
  EXPECT_TRUE(take(reader->find(key, {})).keys[0].has_value());
  for (const Status& status :
       {put_text(*reader, "l", "x"), reader->remove("k"), reader->pin("k", true),
        user("bob", {})->open("k").status(), user("carol", {"~other:*", "+@all"})->open("k").status()}) {
    EXPECT_EQ(status.code(), Code::kIo);
    EXPECT_THAT(status.message(), AllOf(HasSubstr("NOPERM"), Not(HasSubstr("hunter2"))));
  }
  // What the documentation says is enough.
  auto dora = user("dora", {"~ds:*", "+@read", "+@write", "+@connection", "+cluster|slots"});
  const std::string names[] = {std::string(32, 'a')};
  Status put = put_text(*dora, "d", pattern(3'000'000), names);
  EXPECT_TRUE(put.ok()) << put.message();
  EXPECT_EQ(take(dora->list()).size(), 2u);
  EXPECT_TRUE(dora->pin("d", true).ok());
  EXPECT_FALSE(take(dora->evict("d")));
  EXPECT_TRUE(dora->remove("d").ok());
}

TEST_P(OneServer, DatabasesAreApart) {
  auto server = start();
  ASSERT_TRUE(put_text(*open(server->url("", "/3")), "k", "x").ok());
  EXPECT_EQ(open(server->url())->open("k").status().code(), Code::kNotFound);
  EXPECT_EQ(take(get_text(*open(server->url("", "/3")), "k")), "x");
  EXPECT_EQ(open(server->url("", "/99"))->open("k").status().code(), Code::kIo) << "there are 16";
}

// Times here are far above what a quiet machine needs, and far below a hang.
class Clock {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

TEST_P(OneServer, AServerThatIsKilledIsAnErrorAndNoHang) {
  auto server = start();
  auto store = open(server->url("", "?timeout=2"));
  ASSERT_TRUE(put_text(*store, "k", pattern(40'000'000)).ok());
  auto object = take(store->open("k"));
  std::string out(40'000'000, '\0');
  int64_t told = 0;
  Status status = object->read_by_parts(0, std::as_writable_bytes(std::span(out)), [&](auto part) {
    told += static_cast<int64_t>(part.size());
    if (told > 5'000'000) server->kill();
    return ok_status();
  });
  EXPECT_EQ(status.code(), Code::kIo);
  EXPECT_THAT(status.message(), HasSubstr("of 'ds:{k}' from redis://127.0.0.1"));
  for (const Status& s :
       {store->open("k").status(), put_text(*store, "k", "x"), store->remove("k"), store->list().status()}) {
    EXPECT_EQ(s.code(), Code::kIo);
    EXPECT_THAT(s.message(), HasSubstr("Connection refused"));
  }
  store->touch("k");
  object.reset();
  // It comes back, empty, and nobody has to be told.
  server->start();
  ASSERT_TRUE(server->answers());
  EXPECT_EQ(store->open("k").status().code(), Code::kNotFound);
  ASSERT_TRUE(put_text(*store, "k", "x").ok());
  // Connections that it has closed are not used.
  server->kill();
  server->start();
  ASSERT_TRUE(server->answers());
  EXPECT_EQ(store->open("k").status().code(), Code::kNotFound);
}

TEST_P(OneServer, AServerThatSaysNothingIsAnErrorInTimeAndCanBeGivenUp) {
  auto server = start();
  auto store = open(server->url("", "?timeout=1"));
  ASSERT_TRUE(put_text(*store, "k", pattern(8'000'000)).ok());
  auto object = take(store->open("k"));
  server->stop();
  {
    Clock clock;
    EXPECT_THAT(read_text(*object, 0, 8'000'000).status().message(), HasSubstr("has said nothing for 1 s"));
    EXPECT_EQ(store->open("k").status().code(), Code::kIo);
    EXPECT_LT(clock.seconds(), 20);
  }
  server->go_on();
  // Who reads is asked while nothing comes.
  auto patient = open(server->url("", "?timeout=1000"));
  object = take(patient->open("k"));
  server->stop();
  Clock clock;
  int asked = 0;
  std::string out(8'000'000, '\0');
  Status status = object->read_by_parts(0, std::as_writable_bytes(std::span(out)), [&](auto part) {
    asked += part.empty();
    return asked < 5 ? ok_status() : error(Code::kInfeasible, "too late");
  });
  EXPECT_EQ(status.code(), Code::kInfeasible) << status.message();
  EXPECT_LT(clock.seconds(), 100);
  server->go_on();
  EXPECT_EQ(take(read_text(*object, 0, 8'000'000)) == pattern(8'000'000), true);
}

TEST_P(OneServer, KeysOfOthersAreNoObjects) {
  auto server = start();
  auto store = open(server->url());
  server->say({"SET", "ds:{a}", "somebody's"});
  server->say({"RPUSH", "ds:{b}", "list"});
  std::string huge = "DSPARTS1" + std::string(40, '\xff');
  server->say({"SET", "ds:{c}", huge});
  server->say({"SET", "ds:name:" + std::string(32, 'a'), "x"});
  server->say({"ZADD", "ds:name:" + std::string(32, 'b'), "1", "-5 1 k", "2", "1 2 ../../etc", "3",
               "99999999999 1 k", "4", ""});
  for (const char* key : {"a", "b", "c"}) EXPECT_EQ(store->open(key).status().code(), Code::kCorrupt) << key;
  const std::string names[] = {std::string(32, 'a'), std::string(32, 'b')};
  const Found found = take(store->find({}, names));
  EXPECT_TRUE(found.names[0].empty());
  EXPECT_TRUE(found.names[1].empty());
  EXPECT_TRUE(take(store->list()).empty());
  const std::string keys[] = {"a"};
  EXPECT_EQ(store->open(take(store->find(keys, {})).keys[0].value()).status().code(), Code::kCorrupt);
}

// --- what says that it is a server
// ---------------------------------------------------------------------------

/// Sends the same to everybody who connects, and ends.
class Impostor {
 public:
  explicit Impostor(std::string text) : text_(std::move(text)) {
    fd_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof at;
    if (bind(fd_, reinterpret_cast<sockaddr*>(&at), size) != 0 || listen(fd_, 8) != 0 ||
        getsockname(fd_, reinterpret_cast<sockaddr*>(&at), &size) != 0)
      throw std::runtime_error("cannot listen");
    port_ = ntohs(at.sin_port);
    thread_ = std::thread([this] {
      while (true) {
        const int one = accept(fd_, nullptr, nullptr);
        if (one < 0) return;
        char bytes[4096];
        if (recv(one, bytes, sizeof bytes, 0) > 0) (void)send(one, text_.data(), text_.size(), MSG_NOSIGNAL);
        shutdown(one, SHUT_WR);
        while (recv(one, bytes, sizeof bytes, 0) > 0) {
        }
        close(one);
      }
    });
  }
  ~Impostor() {
    shutdown(fd_, SHUT_RDWR);
    thread_.join();
    close(fd_);
  }
  std::string url() const { return fmt::format("redis://127.0.0.1:{}?timeout=2", port_); }

 private:
  std::string text_;
  int fd_ = -1, port_ = 0;
  std::thread thread_;
};

TEST(RedisImpostor, NothingThatAServerSaysIsBelievedOrAllocatedFor) {
  for (const char* text : {"HTTP/1.1 400 Bad Request\r\n\r\n",
                           "\r\n",
                           "\n",
                           "$999999999999999999999\r\n",
                           "$1000000000000\r\n",
                           "*2000000000\r\n",
                           "*-7\r\n",
                           "$-7\r\n",
                           "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
                           ":abc\r\n",
                           "$5\r\nabcdefgh\r\n",
                           "$5\r\nab",
                           "",
                           "-\r\n",
                           "-MOVED\r\n",
                           "-MOVED 1 127.0.0.1:1\r\n",
                           "-MOVED 99999999 h:1\r\n",
                           "-ASK 1 \r\n",
                           "*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:99999\r\n",
                           "*1\r\n*3\r\n:-1\r\n:99999\r\n*2\r\n$9\r\n127.0.0.1\r\n:1\r\n",
                           "*1\r\n$1\r\nx\r\n"}) {
    Impostor impostor(text);
    auto store = take(open_store(impostor.url()));
    const std::string keys[] = {"k"}, names[] = {std::string(32, 'a')};
    EXPECT_FALSE(store->open("k").ok()) << text;
    EXPECT_FALSE(store->find(keys, names).ok()) << text;
    EXPECT_FALSE(put_text(*store, "k", "x").ok()) << text;
    EXPECT_FALSE(store->list().ok()) << text;
  }
  Impostor endless(std::string(1 << 20, 'x'));
  EXPECT_EQ(take(open_store(endless.url()))->open("k").status().code(), Code::kCorrupt);
}

TEST(RedisImpostor, AnErrorsTextIsNotShown) {
  Impostor impostor("-ERR unknown command 'AUTH' with args beginning with 'alice' 'hunter2'\r\n");
  std::string url = impostor.url();
  url.insert(8, "alice:hunter2@");
  Status status = take(open_store(url))->open("k").status();
  EXPECT_EQ(status.code(), Code::kIo);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("(ERR)"), Not(HasSubstr("hunter2")), Not(HasSubstr("alice"))));
}

TEST(RedisImpostor, NobodyThere) {
  Status status = take(open_store("redis://no-such-host.invalid"))->open("k").status();
  EXPECT_EQ(status.code(), Code::kIo);
  EXPECT_THAT(status.message(), HasSubstr("no-such-host.invalid"));
}

// --- TLS
// -----------------------------------------------------------------------------------------------------

class Tls : public ::testing::Test {
 protected:
  void SetUp() override {
    if (redis_program().empty()) GTEST_SKIP() << "there is no redis-server here; ./dev deps brings one";
    std::string name = ::testing::TempDir() + "/ds_tls_XXXXXX";
    folder_ = mkdtemp(name.data());
    make("server", "/CN=127.0.0.1", "IP:127.0.0.1");
    make("other", "/CN=other", "DNS:other.example");
  }
  void TearDown() override {
    std::error_code ignored;
    if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
  }
  void make(const std::string& name, const std::string& subject, const std::string& alternative) {
    const std::string command = fmt::format(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj {1} -addext "
        "subjectAltName={2} -keyout {3}/{0}.key -out {3}/{0}.pem >{3}/log 2>&1",
        name, subject, alternative, folder_);
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
  }
  std::string file(const std::string& name) const { return folder_ + "/" + name; }
  /// On a port of TLS beside its plain one.
  std::unique_ptr<RedisServer> start(const std::string& certificate, const std::string& clients = "no") {
    tls_port_ = free_port();
    return std::make_unique<RedisServer>(
        redis_program(),
        std::vector<std::string>{"--tls-port", std::to_string(tls_port_), "--tls-cert-file",
                                 file(certificate + ".pem"), "--tls-key-file", file(certificate + ".key"),
                                 "--tls-ca-cert-file", file("other.pem"), "--tls-auth-clients", clients});
  }
  std::string url(const std::string& options, const std::string& who = "") const {
    return fmt::format("rediss://{}127.0.0.1:{}?timeout=5{}{}", who, tls_port_, options.empty() ? "" : "&",
                       options);
  }
  std::string folder_;
  int tls_port_ = 0;
};

TEST_F(Tls, GoodCertificatesAreUsedAndBadOnesSaid) {
  auto server = start("server");
  auto store = take(open_store(url("ca=" + file("server.pem"))));
  const std::string text = pattern(9'000'000);
  const std::string names[] = {std::string(32, 'a')};
  Status put = put_text(*store, "k", text, names);
  ASSERT_TRUE(put.ok()) << put.message();
  EXPECT_EQ(take(get_text(*store, "k")) == text, true);
  EXPECT_EQ(take(store->find({}, names)).names[0].size(), 1u);
  store->touch("k");
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // session tickets lie there by now
  EXPECT_EQ(take(get_text(*take(open_store(url("ca=" + file("server.pem")))), "k")) == text, true);
  EXPECT_EQ(take(get_text(*store, "k")) == text, true);

  const auto message = [&](const std::string& options) {
    Status status = take(open_store(url(options, ":hunter2@")))->open("k").status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(status.message(), Not(HasSubstr("hunter2")));
    return status.message();
  };
  EXPECT_THAT(message(""), AllOf(HasSubstr("its certificate is not good"), HasSubstr("?ca=FILE")));
  EXPECT_THAT(message("ca=" + file("other.pem")), HasSubstr("its certificate is not good"));
  EXPECT_THAT(message("ca=" + file("none.pem")), HasSubstr("cannot read the certificates of"));
  // TLS to who does not speak it, and the other way round.
  const std::string plain = fmt::format("rediss://127.0.0.1:{}?timeout=5", server->port());
  EXPECT_THAT(take(open_store(plain))->open("k").status().message(), HasSubstr("no TLS there"));
  EXPECT_FALSE(take(open_store(fmt::format("redis://127.0.0.1:{}?timeout=5", tls_port_)))->open("k").ok());
}

TEST_F(Tls, AnothersNameIsNotGood) {
  auto server = start("other");
  Status status = take(open_store(url("ca=" + file("other.pem"))))->open("k").status();
  EXPECT_EQ(status.code(), Code::kIo);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("its certificate is not good"), HasSubstr("'127.0.0.1'")));
}

TEST_F(Tls, AServerMayWantACertificateOfOurs) {
  auto server = start("server", "yes");
  const std::string ca = "ca=" + file("server.pem");
  EXPECT_FALSE(take(open_store(url(ca)))->open("k").ok());
  Status put = put_text(
      *take(open_store(url(fmt::format("{}&cert={}&key={}", ca, file("other.pem"), file("other.key"))))), "k",
      "x");
  EXPECT_TRUE(put.ok()) << put.message();
}

// --- clusters
// ------------------------------------------------------------------------------------------------

class Cluster : public ::testing::Test {
 protected:
  void SetUp() override {
    if (valkey_program().empty()) GTEST_SKIP() << "there is no Valkey server here; ./dev deps brings one";
    cluster_ = std::make_unique<RedisCluster>(valkey_program());
  }
  std::unique_ptr<Store> open(int node = 0) {
    return take(open_store(cluster_->node(node).url("", "?timeout=2")));
  }
  static size_t slot(const std::string& key) { return key_slot("ds:{" + key + "}"); }
  /// A key that this node has.
  static std::string key_at(int node, int count = 0) {
    for (int i = 0;; ++i) {
      const std::string key = fmt::format("k{}", i);
      if (RedisCluster::owner(slot(key)) == node && count-- == 0) return key;
    }
  }
  void slot_is(int node, size_t slot, const std::string& what, int whose) {
    EXPECT_EQ(cluster_->node(node)
                  .say({"CLUSTER", "SETSLOT", std::to_string(slot), what, cluster_->id(whose)})
                  .text,
              "OK");
  }
  /// Keys of a slot from one node to another: those that `which` says, or all.
  void migrate(size_t slot, int from, int to, const std::function<bool(const std::string&)>& which) {
    for (const Reply& key :
         cluster_->node(from).say({"CLUSTER", "GETKEYSINSLOT", std::to_string(slot), "10000"}).list) {
      if (!which(key.text)) continue;
      EXPECT_EQ(cluster_->node(from)
                    .say({"MIGRATE", "127.0.0.1", std::to_string(cluster_->node(to).port()), key.text, "0",
                          "10000"})
                    .text,
                "OK");
    }
  }
  void moved(size_t slot, int to) {
    for (int node : {to, 0, 1, 2}) slot_is(node, slot, "NODE", to);
  }
  std::unique_ptr<RedisCluster> cluster_;
};

TEST_F(Cluster, EntriesAreSpreadAndNamesFoundAtOnce) {
  auto store = open();
  std::vector<std::string> names;
  for (int i = 0; i < 300; ++i) names.push_back(fmt::format("{:032x}", i));
  for (int node = 0; node < 3; ++node)
    ASSERT_TRUE(put_text(*store, key_at(node), pattern(3'000'000, node), names).ok());
  for (int node = 0; node < 3; ++node) EXPECT_GT(cluster_->node(node).say({"DBSIZE"}).integer, 20);
  for (int first = 0; first < 3; ++first) {
    auto other = open(first);
    const Found found = take(other->find({}, names));
    for (const auto& refs : found.names) EXPECT_EQ(refs.size(), 3u);
    for (int node = 0; node < 3; ++node)
      EXPECT_EQ(take(get_text(*other, key_at(node))) == pattern(3'000'000, node), true);
  }
  EXPECT_EQ(take(store->list()).size(), 3u);
}

TEST_F(Cluster, SlotsMayMoveUnderOpenStoresAndObjects) {
  auto store = open();
  const std::string key = key_at(0), text = pattern(9'000'000);
  const std::string names[] = {std::string(32, 'a')};
  ASSERT_TRUE(put_text(*store, key, text, names).ok());
  auto object = take(store->open(key));
  slot_is(2, slot(key), "IMPORTING", 0);
  slot_is(0, slot(key), "MIGRATING", 2);
  // Half of the parts are there, half here: ASK.
  migrate(slot(key), 0, 2,
          [](const std::string& k) { return k.ends_with(":1") || k.ends_with(":4") || k.ends_with(":5"); });
  EXPECT_EQ(take(read_text(*object, 0, text.size())) == text, true);
  EXPECT_EQ(take(read_text(*object, 2'000'000, 3'000'000)) == text.substr(2'000'000, 3'000'000), true);
  EXPECT_EQ(take(get_text(*open(1), key)) == text, true);
  // A new object while its slot is on its way: its keys go there.
  const std::string other = pattern(9'000'000, 7);
  Status put = put_text(*store, key, other, names);
  ASSERT_TRUE(put.ok()) << put.message();
  EXPECT_EQ(take(read_text(*object, 0, text.size())) == text, true) << "within the grace";
  EXPECT_EQ(take(get_text(*store, key)) == other, true);
  migrate(slot(key), 0, 2, [](const std::string&) { return true; });
  EXPECT_EQ(take(get_text(*store, key)) == other, true);
  // And it is over: MOVED, in the middle of a read too.
  object = take(store->open(key));
  std::string out(other.size(), '\0');
  bool done = false;
  Status read = object->read_by_parts(0, std::as_writable_bytes(std::span(out)), [&](auto part) {
    if (!part.empty() && !std::exchange(done, true)) moved(slot(key), 2);
    return ok_status();
  });
  EXPECT_TRUE(read.ok()) << read.message();
  EXPECT_EQ(out == other, true);
  EXPECT_EQ(take(get_text(*store, key)) == other, true);
  EXPECT_EQ(take(read_text(*object, 100'000, 2'000'000)) == other.substr(100'000, 2'000'000), true);
  EXPECT_EQ(take(store->find({}, names)).names[0].size(), 1u);
  ASSERT_EQ(take(store->list()).size(), 1u);
  EXPECT_TRUE(store->remove(key).ok());
}

TEST_F(Cluster, APutFollowsASlotThatMovesUnderIt) {
  auto store = open();
  const std::string key = key_at(0), part = pattern(9'000'000);
  ASSERT_TRUE(put_text(*store, key, "so that it knows the slots").ok());
  Status put = store->put(key, [&](const Store::Sink& sink) -> Status {
    DS_TRY(sink(bytes_of(part)));
    slot_is(1, slot(key), "IMPORTING", 0);
    slot_is(0, slot(key), "MIGRATING", 1);
    DS_TRY(sink(bytes_of(part)));
    migrate(slot(key), 0, 1, [](const std::string&) { return true; });
    moved(slot(key), 1);
    return sink(bytes_of(part));
  });
  ASSERT_TRUE(put.ok()) << put.message();
  EXPECT_EQ(take(get_text(*open(2), key)) == part + part + part, true);
}

TEST_F(Cluster, ALostMasterIsAMissOfItsEntriesAlone) {
  auto store = open(0);
  for (int node = 0; node < 3; ++node) ASSERT_TRUE(put_text(*store, key_at(node), pattern(30'000'000)).ok());
  auto object = take(store->open(key_at(0)));
  std::string out(30'000'000, '\0');
  int64_t told = 0;
  Clock clock;
  Status status = object->read_by_parts(0, std::as_writable_bytes(std::span(out)), [&](auto part) {
    told += static_cast<int64_t>(part.size());
    if (told > 3'000'000) cluster_->node(0).kill();
    return ok_status();
  });
  EXPECT_EQ(status.code(), Code::kIo);
  EXPECT_THAT(status.message(), HasSubstr(fmt::format("redis://127.0.0.1:{}", cluster_->node(0).port())));
  // The one that the URL names is gone, and the others are known.
  EXPECT_EQ(take(get_text(*store, key_at(1))) == pattern(30'000'000), true);
  EXPECT_EQ(take(get_text(*store, key_at(2))) == pattern(30'000'000), true);
  EXPECT_EQ(store->open(key_at(0)).status().code(), Code::kIo);
  EXPECT_EQ(put_text(*store, key_at(0), "x").code(), Code::kIo);
  EXPECT_LT(clock.seconds(), 60);
  // Who comes now names several.
  auto other = take(open_store(fmt::format("redis://127.0.0.1:{},127.0.0.1:{}?timeout=2",
                                           cluster_->node(0).port(), cluster_->node(1).port())));
  EXPECT_EQ(take(get_text(*other, key_at(2))) == pattern(30'000'000), true);
}

TEST_F(Cluster, AMasterThatSaysNothingIsAMissInTime) {
  auto store = open(1);
  for (int node = 0; node < 3; ++node) ASSERT_TRUE(put_text(*store, key_at(node), pattern(8'000'000)).ok());
  auto object = take(store->open(key_at(1)));
  cluster_->node(1).stop();
  Clock clock;
  EXPECT_THAT(read_text(*object, 0, 8'000'000).status().message(), HasSubstr("has said nothing for 2 s"));
  EXPECT_EQ(take(get_text(*store, key_at(2))) == pattern(8'000'000), true);
  EXPECT_LT(clock.seconds(), 60);
  cluster_->node(1).go_on();
}

}  // namespace
}  // namespace ds
