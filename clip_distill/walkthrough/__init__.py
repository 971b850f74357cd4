"""The whole way on sample data: scenes are drawn, a small teacher is trained, students are distilled from it."""
