"""Search your photos with your student: an index that follows a folder, questions, a server and its page."""
