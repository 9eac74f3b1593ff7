#include "runtime/store/redis_url_internal.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <map>
#include <optional>

namespace ds {
namespace {

constexpr std::string_view kForm =
    "expected redis://[user:password@]host[:port][/db][?options], or rediss:// with TLS";

std::optional<std::string> percent_decoded(std::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      decoded += text[i];
      continue;
    }
    unsigned value = 0;
    if (text.size() - i < 3) return std::nullopt;
    const char* begin = text.data() + i + 1;
    auto [end, failure] = std::from_chars(begin, begin + 2, value, 16);
    if (failure != std::errc() || end != begin + 2 || value == 0) return std::nullopt;
    decoded += static_cast<char>(value);
    i += 2;
  }
  return decoded;
}

std::optional<int64_t> integer(std::string_view text, int64_t low, int64_t high) {
  int64_t value = 0;
  auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc() || end != text.data() + text.size() || value < low || value > high)
    return std::nullopt;
  return value;
}

}  // namespace

std::optional<RedisHost> RedisHost::parse(std::string_view text) {
  RedisHost host;
  std::string_view port;
  if (text.starts_with('[')) {
    const size_t end = text.find(']');
    if (end == text.npos) return std::nullopt;
    host.name = text.substr(1, end - 1);
    port = text.substr(end + 1);
  } else {
    const size_t colon = std::min(text.rfind(':'), text.size());
    host.name = text.substr(0, colon);
    port = text.substr(colon);
  }
  auto odd = [](char c) { return c <= ' ' || c == 127; };
  if (host.name.empty() || std::any_of(host.name.begin(), host.name.end(), odd)) return std::nullopt;
  if (port.empty()) return host;
  const auto number = port[0] == ':' ? integer(port.substr(1), 1, 65535) : std::nullopt;
  if (!number) return std::nullopt;
  host.port = static_cast<int>(*number);
  return host;
}

std::string RedisHost::text() const {
  const bool brackets = name.find(':') != name.npos;
  return fmt::format("{}{}{}:{}", brackets ? "[" : "", name, brackets ? "]" : "", port);
}

std::string RedisOptions::url() const {
  std::string text = fmt::format("redis{}://", tls ? "s" : "");
  if (!user.empty() || !password.empty()) text += "***@";
  for (size_t i = 0; i < hosts.size(); ++i) text += fmt::format("{}{}", i > 0 ? "," : "", hosts[i].text());
  if (db > 0) text += fmt::format("/{}", db);
  return text;
}

Result<RedisOptions> parse_redis_url(const std::string& url) {
  RedisOptions o;
  const size_t colon = url.find(':');
  const std::string_view scheme = std::string_view(url).substr(0, colon);
  // Nothing behind the scheme is shown: where a URL is not understood, its password may stand anywhere.
  auto bad = [&](std::string_view what) {
    return error(Code::kInvalidArgument, "a store of the scheme '{}': {}; {}", scheme, what, kForm);
  };
  o.tls = scheme == "rediss";
  if (url.compare(colon, 3, "://") != 0) return bad("no '//' behind the scheme");
  std::string_view rest = std::string_view(url).substr(colon + 3);
  // A password may hold what means something elsewhere: it ends at the last '@' ("%40" is one in an option).
  if (const size_t at = rest.rfind('@'); at != rest.npos) {
    const std::string_view who = rest.substr(0, at);
    rest = rest.substr(at + 1);
    const size_t separator = std::min(who.find(':'), who.size());
    const auto user = percent_decoded(who.substr(0, separator));
    const auto password =
        percent_decoded(separator < who.size() ? who.substr(separator + 1) : std::string_view());
    if (!user || !password)
      return bad(
          "what is in front of '@' is not percent-encoded: a '%' stands before two hexadecimal digits "
          "('%25' is '%' itself)");
    o.user = *user;
    o.password = *password;
  }
  if (const char* known = std::getenv("DROIDSPEAK_REDIS_PASSWORD"); o.password.empty() && known != nullptr)
    o.password = known;
  if (!o.user.empty() && o.password.empty())
    return bad("a user without a password, which may also be in the environment's DROIDSPEAK_REDIS_PASSWORD");

  std::string_view options;
  if (const size_t question = rest.find('?'); question != rest.npos) {
    options = rest.substr(question + 1);
    rest = rest.substr(0, question);
  }
  if (const size_t slash = rest.find('/'); slash != rest.npos) {
    const std::string_view db = rest.substr(slash + 1);
    rest = rest.substr(0, slash);
    const auto number = db.empty() ? std::optional<int64_t>(0) : integer(db, 0, 1 << 20);
    if (!number) return bad("the database behind '/' is no number from 0 on");
    o.db = *number;
  }
  while (true) {
    const size_t comma = std::min(rest.find(','), rest.size());
    const auto host = RedisHost::parse(rest.substr(0, comma));
    if (!host) return bad("there is a host that is none, or a port outside 1 to 65535");
    o.hosts.push_back(*host);
    if (comma == rest.size()) break;
    rest = rest.substr(comma + 1);
  }

  const auto whole = [](int64_t& to, int64_t low, int64_t high) {
    return [&to, low, high](const std::string& text) {
      const auto number = integer(text, low, high);
      if (number) to = *number;
      return number.has_value();
    };
  };
  const auto text = [](std::string& to) {
    return [&to](const std::string& value) {
      to = value;
      return !value.empty();
    };
  };
  const std::map<std::string, std::pair<std::function<bool(const std::string&)>, std::string_view>,
                 std::less<>>
      known{
          {"ttl", {whole(o.ttl_s, 1, int64_t{1} << 31), "seconds, a whole number from 1 on"}},
          {"lease", {whole(o.lease_s, 1, int64_t{1} << 31), "seconds, a whole number from 1 on"}},
          {"grace", {whole(o.grace_s, 0, int64_t{1} << 31), "seconds, a whole number"}},
          {"part", {whole(o.part_bytes, 4096, 64 << 20), "bytes, from 4096 to 67108864"}},
          {"timeout",
           {[&](const std::string& value) {
              char* end = nullptr;
              o.timeout_s = std::strtod(value.c_str(), &end);
              return !value.empty() && *end == '\0' && o.timeout_s >= 0.05 && o.timeout_s <= 3600;
            },
            "seconds, from 0.05 to 3600"}},
          {"prefix",
           {[&](const std::string& value) {
              o.prefix = value;
              return value.size() <= 100 && value.find_first_of("{}") == value.npos;
            },
            "at most 100 characters without braces"}},
          {"ca", {text(o.ca), "a file of certificates"}},
          {"cert", {text(o.certificate), "a file with our certificate"}},
          {"key", {text(o.key), "a file with our certificate's key"}},
      };
  while (!options.empty()) {
    const size_t end = std::min(options.find('&'), options.size());
    const std::string_view option = options.substr(0, end);
    options = options.substr(std::min(end + 1, options.size()));
    const size_t equals = std::min(option.find('='), option.size());
    const auto found = known.find(option.substr(0, equals));
    if (found == known.end()) {
      std::string names;
      for (const auto& [name, unused] : known) names += (names.empty() ? "" : ", ") + name;
      return bad(fmt::format("an option behind '?' is not one of {}", names));
    }
    const auto value = percent_decoded(equals < option.size() ? option.substr(equals + 1) : "");
    if (!value || !found->second.first(*value))
      return bad(fmt::format("option '{}' is not {}", found->first, found->second.second));
  }
  if (!o.tls && (!o.ca.empty() || !o.certificate.empty() || !o.key.empty()))
    return bad("ca, cert and key are for rediss://");
  if (o.certificate.empty() != o.key.empty()) return bad("cert and key go together");
  return o;
}

}  // namespace ds
