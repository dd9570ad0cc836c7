"""The algorithm as pure tensor functions: boxes, anchors, matching, coding, mining, suppression."""
