// Which objects of a folder have which names: a file of SQLite's in the folder's subfolder .index, shared by
// all processes that use the store. It is a cache of what entries' own headers say: where it is missing,
// damaged, or may not be written, it is made again from them (in memory, if need be), and what has been put
// into the folder or taken out of it by others is noticed by the folder's time of modification.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "runtime/store/store.h"

struct sqlite3;
struct sqlite3_stmt;

namespace ds {

class FileIndex {
 public:
  /// `store` reads the objects of `folder`; it outlives this.
  FileIndex(std::string folder, Store& store);
  ~FileIndex();

  /// By name, as Found::names. Errors: kIo.
  Result<std::vector<std::vector<ObjectRef>>> find(Store::Names names);
  /// An object that has just been put. What fails is made good by the next find().
  void add(const std::string& key, int64_t bytes, Store::Names names);

  static constexpr const char* kFolder = ".index";

 private:
  Status open();
  Status open_at(const std::string& path);
  void close();
  Status run(const char* sql);
  Status fill();  // what the folder has, where it has changed
  Status insert(const std::string& key, int64_t bytes, Store::Names names);
  Status failed(std::string_view what);
  Result<std::vector<std::vector<ObjectRef>>> ask(Store::Names names);

  const std::string folder_;
  Store& store_;
  std::mutex mutex_;
  sqlite3* db_ = nullptr;
  sqlite3_stmt* state_ = nullptr;  // what every look-up asks: kept, since to prepare them takes longer
  sqlite3_stmt* named_ = nullptr;
  bool in_memory_ = false;
  bool damaged_ = false;  // the last error said so
};

}  // namespace ds
